"""Settings, codes, latents, prompts, configurations, conversations and samples, mutated: one line, soon, or taken."""

from fuzz.inputs import check, run, seeds

ROUNDS = 3300


def test_what_is_mutated_is_valid(tmp_path):
    assert all(check(kind, data, tmp_path) for kind, data in seeds())


def test_mutated_inputs_are_read_or_refused_in_one_line(tmp_path):
    counts = run(ROUNDS, tmp_path)
    assert sum(tried for tried, _ in counts.values()) == ROUNDS
    assert all(0 < taken < tried for tried, taken in counts.values()), counts  # neither all refused nor all taken
