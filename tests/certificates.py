"""Certificates for servers that speak TLS, made with openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Certificates:
    """A certificate authority of one test run, and the server certificate that it signed."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")
        authority_key = directory / "ca.key"
        request = directory / "server.csr"
        extensions = directory / "server.ext"
        extensions.write_text(
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
        )
        new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        cls._openssl(
            f"req -x509 {new_key} -days 2 -subj /CN=fanwire-test-authority",
            {"-keyout": authority_key, "-out": made.authority},
        )
        cls._openssl(f"req {new_key} -subj /CN=localhost", {"-keyout": made.key, "-out": request})
        cls._openssl(
            "x509 -req -CAcreateserial -days 2",
            {"-in": request, "-CA": made.authority, "-CAkey": authority_key},
            {"-extfile": extensions, "-out": made.certificate},
        )
        return made

    @staticmethod
    def _openssl(words: str, *files: dict[str, Path]) -> None:
        named = [part for options in files for item in options.items() for part in item]
        subprocess.run(["openssl", *words.split(), *named], check=True, capture_output=True)
