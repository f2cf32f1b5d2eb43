"""schemathesis: whatever is sent, right or wrong, the answer is one that /openapi.json describes."""

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from server import KEY, URL

HEADERS = {"Authorization": f"Bearer {KEY}"}
EXAMPLES = 15  # bodies of each route
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "min_tokens": 0, "n": 1, "best_of": 1}
# A number as a text is taken as a number, and a body that fits the schema can still ask for the impossible.
LENIENT = [negative_data_rejection, positive_data_acceptance]

schema = schemathesis.openapi.from_url(f"{URL}/openapi.json", headers=HEADERS)


@schema.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_an_answer_is_one_that_is_described(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict):  # an answer of the model as long as it may be would take a minute
        case.body.update({name: most for name, most in SHORT.items() if isinstance(case.body.get(name), int)})
        if "messages" in case.body or "prompt" in case.body:
            case.body.setdefault("max_tokens", 3)
        if "input" in case.body:
            case.body.setdefault("max_output_tokens", 3)
    case.call_and_validate(headers=HEADERS, excluded_checks=LENIENT)
