"""The network between nodes, read from the notes that people write beside a GPU's name."""

import re

_RATE = re.compile(
    r"(?:(?P<cards>\d+)\s*x\s*)?(?P<rate>\d+(?:\.\d+)?)\s*(?P<unit>[GT])(?P<bits>[bB])(?:it)?(?:ps|/s)?", re.ASCII
)
_GPUS = re.compile(r"(\d+)\s*(?:gpus?)?\s*/\s*node", re.IGNORECASE)
_PER_GPU = re.compile(r"(?:per|/)\s*gpu", re.IGNORECASE)


def parse_network(text: str, gpus_per_node: int = 8) -> float | None:
    """Bytes/s of one GPU to other nodes, one direction, from a note such as "800 Gb/s node" or "4x100Gb RoCE/node".

    A rate is of the node and is divided by its GPUs ("8/node" in the text, else `gpus_per_node`), unless the text says
    "per GPU". Gb are bits and GB bytes. None where the text has no rate; memory sizes such as "80GB" are none.
    """
    for match in _RATE.finditer(text):
        after = text[match.end() :]
        is_network = match["bits"] == "b" and (match["cards"] or _PER_GPU.match(after.lstrip()))
        if not is_network and not match[0].endswith(("ps", "/s")):
            continue
        rate = float(match["rate"]) * {"G": 1e9, "T": 1e12}[match["unit"]] * int(match["cards"] or 1)
        rate /= 8 if match["bits"] == "b" else 1
        if _PER_GPU.search(after) and "node" not in after.lower():
            return rate
        nodes = _GPUS.search(text)
        return rate / (int(nodes[1]) if nodes else gpus_per_node)
    return None
