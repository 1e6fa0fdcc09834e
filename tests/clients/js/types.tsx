// A program with the types of the package, which TypeScript checks. What it must refuse is marked.
import { ask, resume, TailraceError } from "tailrace";
import { useSession, useSSE, useTurn } from "tailrace/react";

export async function read(): Promise<string | null> {
  const answer = ask("Hello.", { url: "http://127.0.0.1", key: "k", onText: (text) => text.length });
  for await (const event of answer) if (event.type === "delta") event.text.length;
  const { outcome } = await answer.done;
  await answer.steer("Shorter.", { at: "boundary" });
  await answer.cancel();
  const again = resume("01a1fe35", { after: answer.cursor, signal: AbortSignal.timeout(1000) });
  await again.done.catch((error) => error instanceof TailraceError && error.status);
  // @ts-expect-error
  again.nothing;
  // @ts-expect-error
  ask(5);
  return outcome;
}

export function Page() {
  const turn = useTurn({ url: "http://127.0.0.1" });
  const session = useSession("s");
  const sse = useSSE<{ text: string }>("/v1/turns/01a1fe35/events");
  turn.steer("Shorter.").then((made) => made?.turn);
  session.steer("Shorter.", { at: "boundary" });
  session.branch.map(({ turn, siblings }) => siblings.indexOf(turn));
  session.calls.map(({ call }) => session.decide(call, { decision: "denied" }));
  session.edit("t", "Hello.").then((turn) => turn?.length);
  // @ts-expect-error
  session.decide("c", { decision: "perhaps" });
  // @ts-expect-error
  turn.steer("Shorter.", { at: "later" });
  // @ts-expect-error
  turn.text.nothing;
  return <p onClick={() => turn.ask("Hello.")}>{turn.text + session.turns.length + Object.keys(sse)}</p>;
}
