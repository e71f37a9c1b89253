"""GQA's rule: the answer equals the gold answer, apart from dots at its end and its case."""


def gqa_correct(text: str, gold: str) -> bool:
    """Whether an answer is right as LLaVA converts it and the official `eval.py` compares it.

    Only dots at the end and the case are ignored: "a dog" and "dog," are wrong where the gold answer is "dog".
    """
    return gqa_prediction(text) == gold


def gqa_prediction(text: str) -> str:
    """The answer as it is written into GQA's file of predictions."""
    return text.rstrip(".").lower()
