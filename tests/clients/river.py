"""What a structured answer is read as, by every client that can."""

import pydantic

# The simulated Claude answers with it.
ANSWERED = '#sim rate=0 json={"river":"Rhine","km":1230}'


class River(pydantic.BaseModel):
    """A river."""

    river: str
    km: int


RHINE = River(river="Rhine", km=1230)
