"""Writes the table of docs/machine-code.md anew, from the report of

    attn kernels report --representative --sass --arch 80,86,89,90a,100a,120 --json report.json
    python3 docs/machine_code.py report.json docs/machine-code.md

`--representative`: attention without features in bf16, at head sizes 16, 64, 128 and 256. The text around the table is
written by hand: see whether its sentences still fit.
"""

import json
import re
import sys

BEGIN, END = "<!-- table: docs/machine_code.py -->", "<!-- end of table -->"
KERNELS = ["forward", "dq", "dkdv", "unordered"]
HEADER = ["kernel", "head size", "sm", "tile M×N", "registers", "shared KiB", "blocks (limit)", "instructions", "HMMA", "LDSM",
          "MUFU", "other", "HMMA : rest", "bound by (cycles)", "then"]


def defines(module):
    # A value may hold commas: FORWARD=2,4,64.
    return dict(re.findall(r"(\w+)=([^\[\]=]*?)(?:,(?=[A-Z_]+=)|\])", module))


def line(row):
    d, loop = defines(row["module"]), row["main_loop"]
    kernel = row["entry"].removeprefix("softmax_attention_")
    if kernel not in KERNELS:
        return None
    unordered = d.get("UNORDERED") == "1"
    if kernel == "dq" and (unordered or not loop):
        return None
    groups, warps, n = (int(x) for x in d[kernel.upper()].split(","))
    mma = loop["hmma"] + loop["hgmma"]
    rest = loop["instructions"] - mma
    ranking = sorted(loop["cycles"].items(), key=lambda unit: -unit[1])
    kernel = "unordered" if unordered else kernel
    arch = row["arch"].removeprefix("sm_")
    cells = [kernel, d["KEY_COLUMNS"], arch, f"{16 * groups * warps}×{n}", row["registers"],
             f"{(row['static_shared'] + row['dynamic_shared']) / 1024:.1f}",
             f"{row['occupancy']['blocks']} ({row['occupancy']['limit']})", loop["instructions"], mma, loop["ldsm"],
             loop["mufu"], rest - loop["ldsm"] - loop["mufu"], f"{mma / rest:.2f}", "{} {:.0f}".format(*ranking[0]),
             "{} {:.0f}".format(*ranking[1])]
    return (KERNELS.index(kernel), int(d["KEY_COLUMNS"]), int(re.match(r"\d+", arch)[0])), cells


def main():
    report, document = sys.argv[1:]
    with open(report, encoding="utf-8") as file:
        rows = sorted(filter(None, map(line, json.load(file)["rows"])), key=lambda row: row[0])
    table = [HEADER, ["---"] * len(HEADER)] + [cells for _, cells in rows]
    text = "\n".join("| " + " | ".join(str(cell) for cell in cells) + " |" for cells in table)
    with open(document, encoding="utf-8") as file:
        before, rest = file.read().split(BEGIN)
    after = rest.split(END)[1]
    with open(document, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
