"""What a run stands on: the papers that its parts name in their docstrings, as BibTeX."""

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from typing import Any, get_type_hints

from raygrad.config import INNER

_ARXIV = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{5})")


@dataclass(frozen=True)
class Reference:
    """A paper. `authors` are as BibTeX has them; `venue` is where it was published, arXiv where it says nothing."""

    arxiv: str
    key: str
    authors: str
    title: str
    year: int
    venue: str = ""
    pages: str = ""

    @property
    def short(self) -> str:
        """In one line: Reddi et al., "Adaptive Federated Optimization" (arXiv 2003.00295)."""
        names = [name.partition(",")[0] for name in self.authors.split(" and ")]
        who = f"{names[0]} et al." if len(names) > 3 else ", ".join(names)
        return _spelled(f'{who}, "{self.title}" (arXiv {self.arxiv})')

    @property
    def bibtex(self) -> str:
        """As an entry."""
        kind, where = ("inproceedings", {"booktitle": self.venue}) if self.venue else ("misc", {})
        found = {"title": self.title, "author": self.authors, **where, "year": str(self.year)}
        found |= ({"pages": self.pages} if self.pages else {}) | {"note": f"arXiv:{self.arxiv}"}
        width = max(map(len, found))
        lines = ",\n".join(f"  {name:{width}} = {{{value}}}" for name, value in found.items())
        return f"@{kind}{{{self.key},\n{lines}\n}}"


_ACCENTS = {"'": "\N{COMBINING ACUTE ACCENT}", '"': "\N{COMBINING DIAERESIS}", "v": "\N{COMBINING CARON}"}


def _spelled(text: str) -> str:
    """A text with letters in place of BibTeX's accents: R{\\'e}nyi is Rényi."""
    found = re.sub(r"""\{\\(['"v])\{?(\w)\}?\}""", lambda m: m[2] + _ACCENTS[m[1]], text)
    return unicodedata.normalize("NFC", found.replace(r"{\l}", "ł"))


_ICLR, _ICML = "International Conference on Learning Representations", "International Conference on Machine Learning"
_AISTATS, _MLSYS = "International Conference on Artificial Intelligence and Statistics", "Machine Learning and Systems"

MAIN = Reference(
    "2106.13897", "dandi2022implicit", "Dandi, Yatin and Barba, Luis and Jaggi, Martin",
    "Implicit Gradient Alignment in Distributed and Federated Learning", 2022,
    "Proceedings of the AAAI Conference on Artificial Intelligence", "6454--6462",
)  # fmt: skip
"""The paper that raygrad is built around."""

REFERENCES = {
    r.arxiv: r
    for r in (
        MAIN,
        Reference(
            "1512.03385", "he2016deep", "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
            "Deep Residual Learning for Image Recognition", 2016, "Computer Vision and Pattern Recognition",
        ),
        Reference(
            "1602.05629", "mcmahan2017communication",
            "McMahan, H. Brendan and Moore, Eider and Ramage, Daniel and Hampson, Seth and "
            "Ag{\\\"u}era y Arcas, Blaise",
            "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, _AISTATS,
        ),
        Reference(
            "1610.02132", "alistarh2017qsgd",
            "Alistarh, Dan and Grubic, Demjan and Li, Jerry and Tomioka, Ryota and Vojnovic, Milan",
            "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", 2017,
            "Advances in Neural Information Processing Systems",
        ),
        Reference(
            "1702.07476", "mironov2017renyi", "Mironov, Ilya", "R{\\'e}nyi Differential Privacy", 2017,
            "IEEE Computer Security Foundations Symposium",
        ),
        Reference(
            "1710.06963", "mcmahan2018learning",
            "McMahan, H. Brendan and Ramage, Daniel and Talwar, Kunal and Zhang, Li",
            "Learning Differentially Private Recurrent Language Models", 2018, _ICLR,
        ),
        Reference(
            "1808.00087", "wang2019subsampled", "Wang, Yu-Xiang and Balle, Borja and Kasiviswanathan, Shiva Prasad",
            "Subsampled R{\\'e}nyi Differential Privacy and Analytical Moments Accountant", 2019, _AISTATS,
        ),
        Reference(
            "1809.07599", "stich2018sparsified", "Stich, Sebastian U. and Cordonnier, Jean-Baptiste and Jaggi, Martin",
            "Sparsified SGD with Memory", 2018, "Advances in Neural Information Processing Systems",
        ),
        Reference(
            "1706.05699", "yin2018gradient",
            "Yin, Dong and Pananjady, Ashwin and Lam, Max and Papailiopoulos, Dimitris and Ramchandran, Kannan and "
            "Bartlett, Peter",
            "Gradient Diversity: a Key Ingredient for Scalable Distributed Learning", 2018, _AISTATS,
        ),
        Reference(
            "1712.02029", "devarakonda2017adabatch",
            "Devarakonda, Aditya and Naumov, Maxim and Garland, Michael",
            "AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks", 2017,
        ),
        Reference(
            "1812.01097", "caldas2018leaf",
            "Caldas, Sebastian and Duddu, Sai Meher Karthik and Wu, Peter and Li, Tian and Kone{\\v{c}}n{\\'y}, Jakub "
            "and McMahan, H. Brendan and Smith, Virginia and Talwalkar, Ameet",
            "LEAF: A Benchmark for Federated Settings", 2018,
        ),
        Reference(
            "1812.06127", "li2020federated",
            "Li, Tian and Sahu, Anit Kumar and Zaheer, Manzil and Sanjabi, Maziar and Talwalkar, Ameet and "
            "Smith, Virginia",
            "Federated Optimization in Heterogeneous Networks", 2020, _MLSYS,
        ),
        Reference(
            "1903.03934", "xie2019asynchronous", "Xie, Cong and Koyejo, Sanmi and Gupta, Indranil",
            "Asynchronous Federated Optimization", 2019,
        ),
        Reference(
            "1909.06335", "hsu2019measuring", "Hsu, Tzu-Ming Harry and Qi, Hang and Brown, Matthew",
            "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
        ),
        Reference(
            "1910.00189", "hsieh2020noniid",
            "Hsieh, Kevin and Phanishayee, Amar and Mutlu, Onur and Gibbons, Phillip B.",
            "The Non-IID Data Quagmire of Decentralized Machine Learning", 2020, _ICML,
        ),
        Reference(
            "1910.06378", "karimireddy2020scaffold",
            "Karimireddy, Sai Praneeth and Kale, Satyen and Mohri, Mehryar and Reddi, Sashank J. and Stich, Sebastian "
            "U. and Suresh, Ananda Theertha",
            "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", 2020, _ICML,
        ),
        Reference(
            "1910.14425", "haddadpour2019convergence", "Haddadpour, Farzin and Mahdavi, Mehrdad",
            "On the Convergence of Local Descent Methods in Federated Learning", 2019,
        ),
        Reference(
            "2003.00295", "reddi2021adaptive",
            "Reddi, Sashank J. and Charles, Zachary and Zaheer, Manzil and Garrett, Zachary and Rush, Keith and "
            "Kone{\\v{c}}n{\\'y}, Jakub and Kumar, Sanjiv and McMahan, H. Brendan",
            "Adaptive Federated Optimization", 2021, _ICLR,
        ),
        Reference(
            "2010.01243", "cho2020client", "Cho, Yae Jee and Wang, Jianyu and Joshi, Gauri",
            "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies",
            2020,
        ),
        Reference(
            "2010.06081", "lai2021oort",
            "Lai, Fan and Zhu, Xiangfeng and Madhyastha, Harsha V. and Chowdhury, Mosharaf",
            "Oort: Efficient Federated Learning via Guided Participant Selection", 2021,
            "USENIX Symposium on Operating Systems Design and Implementation",
        ),
        Reference(
            "2101.12176", "smith2021origin",
            "Smith, Samuel L. and Dherin, Benoit and Barrett, David G. T. and De, Soham",
            "On the Origin of Implicit Regularization in Stochastic Gradient Descent", 2021, _ICLR,
        ),
        Reference(
            "2106.06639", "nguyen2022federated",
            "Nguyen, John and Malik, Kshitiz and Zhan, Hongyuan and Yousefpour, Ashkan and Rabbat, Mike and Malek, "
            "Mani and Huba, Dzmitry",
            "Federated Learning with Buffered Asynchronous Aggregation", 2022, _AISTATS,
        ),
        Reference(
            "2306.02913", "zhu2023decentralized",
            "Zhu, Tongtian and He, Fengxiang and Chen, Kaixuan and Song, Mingli and Tao, Dacheng",
            "Decentralized SGD and Average-direction SAM are Asymptotically Equivalent", 2023, _ICML,
        ),
        Reference(
            "2308.11958", "kumar2023maintaining", "Kumar, Saurabh and Marklund, Henrik and Van Roy, Benjamin",
            "Maintaining Plasticity in Continual Learning via Regenerative Regularization", 2023,
        ),
        Reference(
            "2310.02702", "zeng2023tackling",
            "Zeng, Dun and Xu, Zenglin and Pan, Yu and Wang, Qifan and Tang, Xiaoying",
            "Tackling Hybrid Heterogeneity on Federated Optimization via Gradient Diversity Maximization", 2023,
        ),
        Reference(
            "2509.16173", "chen2025divebatch", "Chen, Yuen and Wang, Yian and Sundaram, Hari",
            "DiveBatch: Accelerating Model Training Through Gradient-Diversity Aware Batch Size Adaptation", 2025,
        ),
        Reference(
            "2312.00246", "lewandowski2023directions",
            "Lewandowski, Alex and Tanaka, Haruto and Schuurmans, Dale and Machado, Marlos C.",
            "Directions of Curvature as an Explanation for Loss of Plasticity", 2023,
        ),
        Reference(
            "2406.06811", "lewandowski2025learning",
            "Lewandowski, Alex and Bortkiewicz, Micha{\\l} and Kumar, Saurabh and Gy{\\\"o}rgy, Andr{\\'a}s and "
            "Schuurmans, Dale and Ostaszewski, Mateusz and Machado, Marlos C.",
            "Learning Continually by Spectral Regularization", 2025, _ICLR,
        ),
        Reference(
            "1806.03791", "chen2018effect",
            "Chen, Lingjiao and Wang, Hongyi and Zhao, Jinman and Papailiopoulos, Dimitris and Koutris, Paraschos",
            "The Effect of Network Width on the Performance of Large-batch Training", 2018,
            "Advances in Neural Information Processing Systems", "9302--9309",
        ),
        Reference(
            "2111.04263", "acar2021federated",
            "Acar, Durmus Alp Emre and Zhao, Yue and Matas Navarro, Ramon and Mattina, Matthew and Whatmough, Paul N. "
            "and Saligrama, Venkatesh",
            "Federated Learning Based on Dynamic Regularization", 2021, _ICLR,
        ),
        Reference(
            "2412.07971", "zhu2024distributed", "Zhu, Heng and Vardhan, Harsh and Mazumdar, Arya",
            "Effectiveness of Distributed Gradient Descent with Local Steps for Overparameterized Models", 2024,
        ),
    )
}  # fmt: skip
"""The papers that parts of experiments name, by their number on arXiv."""


def named(text: str | None) -> list[str]:
    """The numbers of the papers on arXiv that a text names, each once."""
    return list(dict.fromkeys(_ARXIV.findall(text or "")))


def of_kind(cls: type, whole_file: bool = False) -> list[str]:
    """The numbers of the papers that a class names; with `whole_file` also those at the head of its file."""
    head = sys.modules[cls.__module__].__doc__ if whole_file else ""
    return list(dict.fromkeys([*named(head), *named(cls.__doc__)]))


def of(experiment: Any) -> list[str]:
    """The numbers of the papers that the parts of an experiment name, the main one first."""
    found = [MAIN.arxiv]
    for f in fields(experiment):
        part = getattr(experiment, f.name)
        while is_dataclass(part) and not isinstance(part, type):
            found += of_kind(type(part), whole_file=f.name == "algorithm")
            part = getattr(part, INNER, None)
    return list(dict.fromkeys(found))


def of_record(name: str, experiment: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The numbers of the papers behind a run called `name`, and the kinds of its parts that are not raygrad's own.

    `experiment` is the settings as experiment.json has them, also of an older version. Nobody's code is imported but
    raygrad's, so what parts of the user's own name is missing. A recipe of that `name` adds its papers.
    """
    from raygrad.experiment import Experiment
    from raygrad.recipes import RECIPES

    hints = get_type_hints(Experiment)
    found, others = [MAIN.arxiv], []
    for f in fields(Experiment):
        registry, part = f.metadata.get("registry"), experiment.get(f.name)
        if registry is None and is_dataclass(hints[f.name]):
            found += of_kind(hints[f.name], whole_file=False)
        while registry is not None and isinstance(part, Mapping):
            kind = str(part.get("kind"))
            if kind in registry:
                found += of_kind(registry[kind], whole_file=f.name == "algorithm")
            else:
                others.append(kind)
            part = part.get(INNER)
    about = RECIPES[name].__doc__ if name in RECIPES else None
    return list(dict.fromkeys([*found, *named(about)])), others


def software() -> str:
    """The entry of raygrad itself, with the version that is installed."""
    return _SOFTWARE.format(version=metadata.version("raygrad"))


_SOFTWARE = """@software{{raygrad,
  title   = {{raygrad}},
  note    = {{Distributed and federated learning on Ray, built around gradient alignment}},
  version = {{{version}}}
}}"""


def bibtex(arxiv: str) -> str:
    """The entry of a paper; one that is not known by more than its number gets no more than that."""
    known = REFERENCES.get(arxiv)
    return f"@misc{{arxiv{arxiv},\n  note = {{arXiv:{arxiv}}}\n}}" if known is None else known.bibtex
