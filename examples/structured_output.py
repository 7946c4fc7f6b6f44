"""Texts of a given form: an object that fits a JSON schema, one of several choices."""

from __future__ import annotations

import json
import sys

from outrider_client import Client, GenerationConfig, StructuredOutput

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # small models dawdle in white space
}


def main(address: str) -> None:
    """Asks the target service at `address` for an object and for a choice."""
    config = GenerationConfig(max_new_tokens=64)
    with Client(address) as client:
        completion = client.generate(
            "ada = json.loads('", config, structured_output=StructuredOutput(json_schema=PERSON)
        )
        if completion.finish_reason == "stop":  # else it was cut short, and is perhaps no JSON
            person = json.loads(completion.text)
            print(person["name"], person["age"])
        answer = client.generate(
            "is_prime(7) is ", config, structured_output=StructuredOutput(choices=["True", "False"])
        )
        print(answer.text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
