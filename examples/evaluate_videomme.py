"""Video-MME's multiple-choice questions, asked and scored as the public harnesses do.

Usage: python evaluate_videomme.py QUESTIONS.jsonl VIDEOS --out ANSWERS.jsonl [--url URL] [--num-frames 80] [--streams 8]

QUESTIONS has the dataset's fields, one question a line: videoID, question_id, duration, domain, task_type, question, options
(["A. ...", ...]), answer ("A" to "D"). In VIDEOS lies videoID.mp4 of each. Called again, it goes on where it stopped.
"""

import argparse
import asyncio
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from internvideo_client import ApiError, AsyncVideoChat

PROMPT = """Select the best answer to the following multiple-choice question based on the video. \
Respond with only the letter (A, B, C, or D) of the correct option.
{question}
{options}
The best answer is:"""


def letter(text: str) -> str:
    """The option that an answer names, "" if none: "B", "(B)", "B. A red panda", "The best answer is B"."""
    text = re.sub(r"^.*?(best|correct) (answer|option)( is)?:?", "", text.strip(), flags=re.IGNORECASE | re.DOTALL)
    found = re.search(r"(?<![A-Za-z])[A-D](?![A-Za-z])", text)
    return found[0] if found else ""


async def ask(row: dict[str, Any], videos: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One question, with the answer and whether it is right."""
    chat = AsyncVideoChat(options.url, api_key=options.api_key)
    question = PROMPT.format(question=row["question"], options="\n".join(row["options"]))
    guide = {"structured_outputs": {"choice": ["A", "B", "C", "D"]}} if options.guided else {}
    video = next(videos.glob(f"{row['videoID']}.*"))
    try:
        answer = await chat.ask(video, question, num_frames=options.num_frames, max_tokens=16, temperature=0, **guide)
    except ApiError as error:
        return {**row, "error": f"{error.status}: {error.message}", "right": False}
    return {**row, "response": answer.text, "prediction": letter(answer.text), "right": letter(answer.text) == row["answer"]}


async def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All answers, those of an earlier call included."""
    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    done = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()] if options.out.exists() else []
    known = {row["question_id"] for row in done if "error" not in row}
    done = [row for row in done if row["question_id"] in known]
    places = asyncio.Semaphore(options.streams)

    async def limited(row: dict[str, Any]) -> dict[str, Any]:
        async with places:
            return await ask(row, options.videos, options)

    with options.out.open("w", encoding="utf-8") as out:
        for row in done:
            print(json.dumps(row, ensure_ascii=False), file=out)
        for task in asyncio.as_completed([limited(row) for row in rows if row["question_id"] not in known]):
            done.append(await task)
            print(json.dumps(done[-1], ensure_ascii=False), file=out, flush=True)
    return done


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy over all, by duration, domain and task, as Markdown."""
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        for kind in ("duration", "domain", "task_type"):
            groups[kind, str(row.get(kind, ""))].append(row["right"])
        groups["all", ""].append(row["right"])
    lines = ["| | | questions | accuracy |", "|---|---|---:|---:|"]
    for (kind, name), right in sorted(groups.items()):
        lines.append(f"| {kind} | {name} | {len(right)} | {100 * sum(right) / len(right):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines of answers")
    parser.add_argument("--url", default="http://127.0.0.1:9997")
    parser.add_argument("--api-key")
    parser.add_argument("--num-frames", type=int, default=80)
    parser.add_argument("--streams", type=int, default=8, help="questions at once")
    parser.add_argument("--guided", action="store_true", help="let the server allow nothing but A, B, C or D")
    options = parser.parse_args()
    rows = asyncio.run(evaluate(options))
    failed = sum("error" in row for row in rows)
    print(table(rows) + (f'\n\n{failed} could not be asked: see "error" in {options.out}' if failed else ""))


if __name__ == "__main__":
    main()
