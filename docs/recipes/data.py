#!/usr/bin/env python3
"""Makes the files that the guides train on from the raw data sets. Plain Python, no packages.

    python3 data.py RAW OUT

RAW holds what the page "Models and data" lists; what is missing there is left out, with a message. Rows are drawn with
a fixed seed. The environment variable ROWS caps every file at so many rows, for a quick look.
"""

import json
import os
import pathlib
import random
import sys

CAP = int(os.environ.get("ROWS") or 0) or None
DOMAIN = "perl"  # the section that the small T5 never sees before its prefix does


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows[:CAP]:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path}: {len(rows[:CAP])} rows")


def split(rows, seed, train, test):
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows[test : test + train], rows[:test]


def foods(raw, out):
    """Food reviews, `great` or `other`, in the split they come with."""
    for name, count in (("train", 4000), ("test", 400)):
        rows, _ = split(read(raw / "foods" / f"{name}.jsonl"), 0, count, 0)
        write(out / "foods" / f"{name}.jsonl", rows)


def names(raw, out):
    """Sentences of the Brown corpus; a run of proper nouns is a name. No document is in both files."""
    rows = [row for row in read(raw / "brown" / "brown.jsonl") if 4 <= len(row["tokens"]) <= 40]
    documents = sorted({row["document"] for row in rows})
    random.Random(0).shuffle(documents)
    held_out = set(documents[:50])

    def tagged(row):
        tags, inside = [], False
        for tag in row["tags"]:
            proper = tag.lower().startswith("np")
            tags.append(("I-NAME" if inside else "B-NAME") if proper else "O")
            inside = proper
        return {"tokens": row["tokens"], "tags": tags}

    train, _ = split([row for row in rows if row["document"] not in held_out], 0, 4000, 0)
    test, _ = split([row for row in rows if row["document"] in held_out], 0, 500, 0)
    write(out / "names" / "train.jsonl", [tagged(row) for row in train])
    write(out / "names" / "test.jsonl", [tagged(row) for row in test])


def summaries(raw, out):
    """Descriptions of Debian packages with their one-line summaries, in three shapes."""
    seen, rows = set(), []
    for row in read(raw / "debian-summaries" / "summaries.jsonl"):
        document = " ".join(row["document"].split())
        # Packages of one source share a description; one of them is enough.
        if 40 <= len(document) <= 600 and document[:80] not in seen:
            seen.add(document[:80])
            rows.append({"section": row["section"], "document": document, "summary": row["summary"]})
    of_domain = [row for row in rows if row["section"] == DOMAIN]
    others = [row for row in rows if row["section"] != DOMAIN]
    train, test = split(others, 0, len(others), 400)

    prompt = "{document}\n\nOne-line summary:"
    for name, part in (("train", train[:600]), ("test", test[:80])):
        shaped = [{"prompt": prompt.format(**row), "completion": " " + row["summary"]} for row in part]
        write(out / "summaries" / f"{name}.jsonl", shaped)
    for name, part in (("train", train[:4000]), ("test", test)):
        shaped = [{"text": row["summary"], "text_pair": row["document"]} for row in part]
        write(out / "search" / f"{name}.jsonl", shaped)
    pairs = lambda part: [{"prompt": row["document"], "completion": row["summary"]} for row in part]
    write(out / "t5" / "pretrain.jsonl", pairs(train))
    train, test = split(of_domain, 0, 1000, 100)
    write(out / DOMAIN / "train.jsonl", pairs(train))
    write(out / DOMAIN / "test.jsonl", pairs(test))


def speech(raw, out):
    """Recordings of a telephone system with what is said in them. Names of files are relative to the data file."""
    folder, seen, rows = out / "speech", set(), []
    for row in read(raw / "speech" / "speech.jsonl"):
        text = " ".join(row["text"].split())
        # Remarks such as `(10 seconds of silence)` are no speech, and no text is in both files.
        if row["seconds"] <= 30 and not set("([") & set(text) and text.lower() not in seen:
            seen.add(text.lower())
            file = os.path.relpath(raw / "speech" / row["wav"], folder)
            rows.append({"audio": file, "text": text})
    train, test = split(rows, 0, len(rows), 100)
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    raw, out = map(pathlib.Path, sys.argv[1:])
    for make in (foods, names, summaries, speech):
        try:
            make(raw, out)
        except FileNotFoundError as error:
            print(f"left out {make.__name__}: {error.filename} is not there")


if __name__ == "__main__":
    main()
