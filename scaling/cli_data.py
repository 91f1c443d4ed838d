"""`scaling data`: prepare and inspect training text."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from scaling.cli_options import DataDir, Json, print_json

data_app = typer.Typer(help="Prepare and inspect training text.", no_args_is_help=True)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A .txt, .jsonl or .parquet file, a folder of such, a Megatron .bin/.idx, python or synthetic."
        ),
    ] = "python",
    name: Annotated[Optional[str], typer.Option(help="Name of the corpus. Default: after its source.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of .jsonl records, column of .parquet files.")] = "text",
    validation_fraction: Annotated[
        Optional[float], typer.Option(help="Bytes held out. Default: 5 %, or 256 KiB of a small corpus.")
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: Json = False,
) -> None:
    """Turn text into tokens on disk: duplicates dropped, split by document, with a manifest of hashes."""
    from scaling.data.prepare import prepare_corpus

    corpus = prepare_corpus(source, data_dir, name=name, text_field=text_field, validation_fraction=validation_fraction)
    _show_corpus(corpus, as_json)


@data_app.command("show")
def data_show(
    path: Annotated[Path, typer.Argument(help="Folder of a prepared corpus, such as data/python.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every token again and compare the fingerprint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe a prepared corpus."""
    from scaling.data.prepare import load_corpus, verify_corpus

    _show_corpus(verify_corpus(path) if verify else load_corpus(path), as_json)


def _show_corpus(corpus: Any, as_json: bool) -> None:
    if as_json:
        print_json({**corpus.model_dump(mode="json"), "path": str(corpus.path), "entropy_rate": corpus.entropy_rate})
        return
    print(f"{corpus.path}: corpus {corpus.name}, from {corpus.source}")
    print(f"train       {corpus.train.tokens:>14,} tokens in {corpus.train.documents:,} documents")
    print(f"validation  {corpus.validation.tokens:>14,} tokens in {corpus.validation.documents:,} documents")
    print(f"tokenizer   {corpus.tokenizer}, {corpus.vocab_size} token ids")
    print(f"duplicates  {corpus.duplicates_dropped:,} dropped")
    print(f"fingerprint {corpus.fingerprint}")
