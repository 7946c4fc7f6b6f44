"""What can go wrong, which exception says so, and what to do about it."""

from __future__ import annotations

import sys

from outrider_client import (
    Client,
    DeadlineExceededError,
    GenerationConfig,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    StreamInterruptedError,
    UnavailableError,
)


def complete(client: Client, prompt: str, config: GenerationConfig) -> str:
    """The completion of a prompt, or as much of it as there is."""
    try:
        return client.generate(prompt, config, timeout=30).text
    except InvalidRequestError as error:  # change the request: `field` says where
        print(f"refused ({error.field or error.reason}): {error.message}")
    except OverloadedError as error:  # the client has already tried again a few times
        print(f"full; come back in {error.retry_after} s")
    except (StreamInterruptedError, DeadlineExceededError) as error:  # halfway: keep what came
        print(f"incomplete: {error.message}")
        return error.partial.text if error.partial else ""
    except UnavailableError as error:
        print(f"not reachable: {error.message}")
    except OutriderError as error:  # look the request up in the server's log
        print(f"request {error.request_id} failed: {error.message}")
    return ""


def main(address: str) -> None:
    """Asks the target service at `address` for things it may refuse."""
    with Client(address) as client:
        print(complete(client, "import ", GenerationConfig(max_new_tokens=8)))
        print(complete(client, "", GenerationConfig(max_new_tokens=8)))
        print(complete(client, "import ", GenerationConfig(max_new_tokens=1_000_000)))
    try:
        GenerationConfig(top_p=1.5)
    except ValueError as error:  # found before anything is sent
        print(error)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
