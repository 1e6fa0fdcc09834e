/** The types of react.js. */
import type { Acts, SessionOptions, Shown } from "./session.js";
import type { Answer, End, Options, State, TailraceError } from "./tailrace.js";

type Question = string | Record<string, unknown>;

export interface Turn {
  turn: string | null;
  session: string | null;
  text: string;
  /** `idle`: nothing was asked. `ended` without `end` and `error`: reading was stopped. */
  state: State | "idle";
  end: End | null;
  /** The turn was refused, or the connection is lost for good. */
  error: Error | TailraceError | null;
  /** Starts a turn. The same question is ignored while the first one is on its way. */
  ask(question: Question, options?: Pick<Options, "idempotencyKey">): void;
  /** Reads a turn. */
  resume(turn: string, options?: Pick<Options, "after">): void;
  /** Puts a message into the answer: `text` is then the new answer. Returns null if that was refused: see `error`. */
  steer(...given: Parameters<Answer["steer"]>): Promise<Record<string, unknown> | null>;
  /** Stops reading. The turn goes on. */
  stop(): void;
  /** Ends the turn. Returns null if that was refused: see `error`. */
  cancel(): Promise<Record<string, unknown> | null> | undefined;
}

/** With `turn`, reads this turn, as a page does that was reloaded. Unmounting stops reading; the turn goes on. */
export function useTurn(options?: Omit<Options, "after" | "idempotencyKey" | "signal"> & { turn?: string | null }): Turn;

/** A session for a chat. `null`: none is shown. */
export function useSession(session: string | null, options?: SessionOptions): Shown & Acts;

/** Keeps the last event of a stream of JSON objects. Named events are ignored. Without a url, it reads nothing. */
export function useSSE<Data = Record<string, unknown>>(
  url: string | null,
  options?: Omit<Options, "idempotencyKey" | keyof Callbacks>,
): { data: Data | null; error: Error | TailraceError | null; status: State | "idle"; isConnected: boolean };

type Callbacks = Pick<Options, "onEvent" | "onText" | "onState">;
