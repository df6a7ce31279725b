import pytest
import torch

from seed_edge.models.efficientnet import EfficientNetLite
from seed_edge.train.pixel.perceptual import Critic, TrunkFeatures, perceptual_distance


@pytest.fixture(scope="module")
def looking():
    torch.manual_seed(0)
    trunk = EfficientNetLite().requires_grad_(False)
    return TrunkFeatures(trunk, (2, 4))


def test_equal_pictures_are_at_no_distance_and_a_drawing_learns_from_the_rest(looking):
    truth = torch.rand(2, 3, 32, 32)
    assert perceptual_distance(*looking(truth, truth)) == 0
    drawn = torch.rand(2, 3, 32, 32, requires_grad=True)
    far = perceptual_distance(*looking(drawn, truth))
    far.backward()
    with torch.no_grad():
        nearer = perceptual_distance(*looking(drawn - 0.5 * drawn.grad / drawn.grad.norm(), truth))
    assert 0 < nearer < far


def test_each_tap_weighs_as_much_as_another(looking):
    _, wanted = looking(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    assert [tap.var().item() for tap in wanted] == pytest.approx([1, 1], rel=1e-3)


def test_critic_and_decoder_learn_against_each_other_and_not_for_each_other():
    critic = Critic((8,))
    wanted, found = [torch.randn(4, 8, 6, 6)], [torch.randn(4, 8, 6, 6).requires_grad_()]
    told, adversarial = critic.losses(found, wanted)
    told.backward()
    assert found[0].grad is None and all(p.grad is not None for p in critic.parameters())
    critic.zero_grad()
    adversarial.backward()
    assert found[0].grad is not None and not any(p.grad is not None for p in critic.parameters())


def test_a_critic_learns_to_tell_what_can_be_told():
    torch.manual_seed(0)
    critic = Critic((8,))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    for _ in range(60):
        wanted, found = [torch.randn(8, 8, 4, 4) + 1], [torch.randn(8, 8, 4, 4) - 1]
        told, _ = critic.losses(found, wanted)
        optimizer.zero_grad()
        told.backward()
        optimizer.step()
    assert told < 0.5  # 1 where nothing can be told
    (real,), (fake,) = critic(wanted), critic(found)
    assert real.mean() > 0.5 > -0.5 > fake.mean()
