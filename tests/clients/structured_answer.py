"""A structured answer, and the model with which clients parse it."""

import pydantic

# The simulated Claude answers with this JSON.
ANSWERED = '#sim rate=0 json={"river":"Rhine","km":1230}'


class River(pydantic.BaseModel):
    river: str
    km: int


RHINE = River(river="Rhine", km=1230)
