/** The types of react.js. */
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

/** A turn as in `GET /v1/sessions/{session}/turns`. */
export interface SessionTurn {
  turn: string;
  /** The messages that the turn added to the session; empty until they are read. */
  input: { role: string; content: unknown }[];
  text: string;
  outcome: "running" | End["outcome"];
  error: { code: string; message: string } | null;
  [field: string]: unknown;
}

export interface Session {
  /** The newest 100 turns and all later ones, oldest first. The text of those that run grows. */
  turns: SessionTurn[];
  /** Whether the session has turns before these. */
  hasEarlier: boolean;
  /** `idle`: the session does not exist yet. */
  state: State | "idle";
  error: Error | TailraceError | null;
  /** Starts a turn in the session. Returns its id, or null if it was refused. */
  ask(question: Question): Promise<string | null>;
  /** Puts a message into the answer that runs; if none runs, the message is a question. Returns as `ask` does. */
  steer(message: Parameters<Answer["steer"]>[0], options?: { at?: "now" | "boundary" }): Promise<string | null>;
  /** Ends the running turns. */
  cancel(): Promise<Record<string, unknown> | null>;
  /** Adds up to 100 turns before those in `turns`. */
  readEarlier(): Promise<void> | undefined;
}

export function useSession(session: string | null, options?: Omit<Options, "after" | "idempotencyKey" | "signal" | keyof Callbacks>): Session;

/** Keeps the last event of a stream of JSON objects. Named events are ignored. Without a url, it reads nothing. */
export function useSSE<Data = Record<string, unknown>>(
  url: string | null,
  options?: Omit<Options, "idempotencyKey" | keyof Callbacks>,
): { data: Data | null; error: Error | TailraceError | null; status: State | "idle"; isConnected: boolean };

type Callbacks = Pick<Options, "onEvent" | "onText" | "onState">;
