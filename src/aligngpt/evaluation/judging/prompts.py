"""What judges are asked: the texts of LLaVA-Bench's and of MM-Vet's own evaluation programs."""

import hashlib
import json

Messages = list[dict[str, str]]
"""A chat: messages with `role` and `content`."""

REVIEWER = "You are a helpful and precise assistant for checking the quality of the answer."
REVIEW = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives "
    "an overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential "
    "bias and ensuring that the order in which the responses were presented does not affect your judgment."
)
"""The rule in LLaVA's `rule.json` for `llava_bench_conv`, `llava_bench_detail` and `llava_bench_complex` alike."""

_MEME = "Can you explain this meme?"
_MEME_TRUTH = (
    "This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite "
    "its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. "
    "The meme is saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes."
)
_EXAMPLES = (
    ("Question", "Ground truth", "Prediction", "Correctness"),
    ("---", "---", "---", "---"),
    ("What is x in the equation?", "-1 <AND> -5", "x = 3", "0.0"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -1", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -5", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -5 or 5", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -1 or x = -5", "1.0"),
    (
        _MEME,
        _MEME_TRUTH,
        "The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not very "
        "icy and Greenland isn't very green.",
        "0.4",
    ),
    (
        _MEME,
        _MEME_TRUTH,
        "The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, "
        "despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text "
        "'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to "
        "distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names of "
        "the countries and their actual physical characteristics.",
        "1.0",
    ),
)
_TASK = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score."
)
GRADE = "\n".join([_TASK, "", *map(" | ".join, _EXAMPLES), ""])
"""The prompt of MM-Vet's `mm-vet_evaluator.py`: the task and seven graded examples."""
ONLY_DIGIT = "\nPredict the correctness of the answer (digit): "
"""What that program adds when it asks again after a reply that it cannot read."""


def review_messages(context: str, question: str, reference: str, answer: str) -> Messages:
    """The request of LLaVA's `eval_gpt_review_bench.py`: the reference answer is Assistant 1, the model Assistant 2.

    Args:
        context: sentences that describe the picture.
        question: the question about it.
        reference: the reference answer.
        answer: the model's answer.
    """
    content = (
        f"[Context]\n{context}\n\n[Question]\n{question}\n\n"
        f"[Assistant 1]\n{reference}\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n"
        f"[System]\n{REVIEW}\n\n"
    )
    return [{"role": "system", "content": REVIEWER}, {"role": "user", "content": content}]


def grade_messages(question: str, truth: str, answer: str, *, again: bool = False) -> Messages:
    """The request of MM-Vet's `mm-vet_evaluator.py`.

    Args:
        question: the question.
        truth: the ground truth, with `<AND>` and `<OR>` between its elements.
        answer: the model's answer.
        again: whether the first reply could not be read.
    """
    spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    content = f"{GRADE}\n{question} | {spaced} | {answer} | {ONLY_DIGIT if again else ''}"
    return [{"role": "user", "content": content}]


def prompt_hash(*chats: Messages) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of chats; identifies a prompt, given with names in its gaps."""
    return hashlib.sha256(json.dumps(chats, sort_keys=True).encode()).hexdigest()[:16]
