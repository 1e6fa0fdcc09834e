"""Parser of the `#sim` directive lines."""

from typing import get_args

import pytest

from tailrace.deploy.simulated_claude.directive import Directive, DirectiveInvalid, Setting, read, remove_directives
from tailrace.deploy.simulated_claude.fault import FAULT_KINDS, Fault
from tools.reference_tables import simulated_help


@pytest.mark.parametrize(
    ("line", "directive"),
    [
        ("#sim words=400 rate=50", Directive(words=400, rate=50.0)),
        ("  #sim words=0 tag=turn-7 rate=0", Directive(words=0, tag="turn-7", rate=0.0)),
        ("#sim wait=1.5 thinking=3 retry_after=0.25", Directive(wait_s=1.5, thinking=3, retry_after_s=0.25)),
        (
            '#sim tool=look json={"a": {"b": "} c"}} words=2',
            Directive(tool="look", inputs_json=('{"a": {"b": "} c"}}',), words=2),
        ),
        ('#sim tool=look,see json={} json={"a": 1}', Directive(tool="look,see", inputs_json=("{}", '{"a": 1}'))),
        ("#sim fault=429", Directive(faults=(Fault("429", 0),))),
        ("#sim fault=cut@120 fault=529@7x2", Directive(faults=(Fault("cut", 120), Fault("529", 7, 2)))),
        ("#sim words=20 hi", Directive(words=20)),
        ("#simple words=3", Directive()),
        ("please write #sim words=3", Directive()),
        ("#sim", Directive()),
    ],
)
def test_a_directive_line_is_parsed(line: str, directive: Directive) -> None:
    assert read(f"What is a log?\n{line}\nThank you.") == directive


@pytest.mark.parametrize(
    "line",
    [
        *(
            "#sim word=3",
            "#sim fast",
            "#sim words=3 rate 5",
            "#sim words=3 fast raet=5",
            "#sim words=1.5",
            "#sim words=1000001",
            "#sim rate=nan",
        ),
        *("#sim tag=a.b", "#sim json={", "#sim json=[1]", "#sim fault=explode@3", "#sim fault=cut@x"),
    ],
)
def test_an_invalid_directive_line_is_refused(line: str) -> None:
    """A misspelt fault without effect would make a test pass that tests nothing."""
    with pytest.raises(DirectiveInvalid, match="#sim"):
        read(line)


@pytest.mark.parametrize(
    ("question", "count", "rate"),
    [
        ("Count to three hundred, slowly.", 300, 15.0),
        ("count to 300", 300, 50.0),
        ("Please count from one to two thousand one hundred and twenty-five.", 2125, 50.0),
        ("Count up to 1,500 slowly", 1500, 15.0),
        ("Count to a hundred and then stop", 100, 50.0),
        ("Count to 10001", None, 50.0),
        ("Count to " + "hundred " * 9, None, 50.0),
        ("How do I count to ten?", None, 50.0),
        ("Count.", None, 50.0),
    ],
)
def test_a_question_to_count_sets_count_and_rate(question: str, count: int | None, rate: float) -> None:
    assert read(question) == Directive(count=count, rate=rate)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_a_fault_may_have_no_position(kind: str) -> None:
    """`429x2` refuses two calls: the digits of the kind end at the count."""
    assert read(f"#sim fault={kind}x2").faults == read(f"#sim fault={kind}@0x2").faults


def test_the_topic_is_the_question_without_its_directive() -> None:
    assert remove_directives("What is a log?\n#sim words=3\n") == "What is a log?"


def test_text_behind_the_words_of_a_directive_is_the_question() -> None:
    """So does a person write who tries the terminal or the page."""
    assert remove_directives(r"#sim words=20 Why \1 \n?") == r"Why \1 \n?"
    assert (
        remove_directives('#sim json={"a": 1} What is a log?\n#sim rate=0\nIn a word.')
        == "What is a log?\n\nIn a word."
    )


@pytest.mark.parametrize("word", [*(f"{name}=" for name in get_args(Setting)), *FAULT_KINDS])
def test_the_generated_page_has_a_row_for_each_setting(word: str) -> None:
    """Its rows are parsed out of the help text."""
    names = [line.split("|")[1] for line in simulated_help().splitlines() if line.startswith("| `")]
    assert [name for name in names if word in name], names
