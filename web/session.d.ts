/** The types of session.js. */
import type { Answer, End, Options, State, TailraceError, Usage } from "./tailrace.js";

/** A text, content blocks, or the body of `POST /v1/turns`. */
export type Question = string | Record<string, unknown>[] | Record<string, unknown>;

type Message = { role: string; content: unknown };

/** A turn as in `GET /v1/sessions/{session}/turns`. */
export interface SessionTurn {
  turn: string;
  /** The messages that the turn added to the session; empty until they are read. */
  input: Message[];
  text: string;
  outcome: "running" | End["outcome"];
  error: { code: string; message: string } | null;
  // Absent until they are read.
  model?: string;
  /** The turn that this one continues; null: the turn begins the session. */
  parent?: string | null;
  content?: Record<string, unknown>[];
  /** Why the model stopped, such as `end_turn`, `max_tokens` or `tool_use`. */
  stop_reason?: string | null;
  usage?: Usage;
  cost_usd?: number | null;
  /** When the question was accepted, as in ISO 8601. */
  asked_at?: string;
  [field: string]: unknown;
}

/** A question that the server does not have yet. */
export interface PendingQuestion {
  /** Its idempotency key. */
  key: string;
  input: Message[];
  asked_at: string;
  /** Why it was refused, or cannot be sent now. Null: it is on its way, or waits for the network. */
  error: { message: string; status?: number; code?: string } | null;
  /** Whether it survives a reload. */
  isStored: boolean;
}

/** A call of `GET /v1/sessions/{session}/calls`. */
export interface WaitingCall {
  call: string;
  name: string;
  input: any;
  [field: string]: unknown;
}

export interface Shown {
  /** The newest 100 turns and all later ones, of all branches, oldest first. The text of those that run grows. */
  turns: SessionTurn[];
  /** The turns of the branch that is shown, oldest first. `siblings`: the turns with the same parent, also this one. */
  branch: (SessionTurn & { siblings: string[] })[];
  /** The branches of `turns`, newest first: the last turn of each, and all of its turns. */
  branches: { turn: string; outcome: SessionTurn["outcome"]; asked_at?: string; length: number; turns: string[] }[];
  /** The calls of tools for which the branch waits. */
  calls: WaitingCall[];
  pending: PendingQuestion[];
  /** Whether the session has turns before these. */
  hasEarlier: boolean;
  /** `idle`: the session does not exist yet. */
  state: State | "idle";
  error: Error | TailraceError | null;
}

/** Results are null after a refusal, which is in `error`. */
export interface Acts {
  /** Asks in the branch that is shown. Returns the turn's id when the server has the question. */
  ask(question: Question): Promise<string | null>;
  /** Puts a message into the answer that runs; if none runs, the message is a question. Returns as `ask` does. */
  steer(message: Parameters<Answer["steer"]>[0], options?: { at?: "now" | "boundary" }): Promise<string | null>;
  /** Ends the running turns. */
  cancel(): Promise<Record<string, unknown> | null>;
  /** Asks the question of a turn again, in a new branch. `fields`: fields of the new turn, such as `model`. */
  regenerate(turn: string, fields?: Record<string, unknown>): Promise<string | null>;
  /** Asks another question in place of that of a turn, in a new branch. A text keeps the files of the old question. */
  edit(turn: string, question: Question): Promise<string | null>;
  /** Decides about a call of `calls`. */
  decide(
    call: string,
    decision: { result: string | object[]; is_error?: boolean } | { decision: "denied"; reason?: string },
  ): Promise<{ next: string | null; undecided_calls: string[]; waits_because: string | null; calls: any[] } | null>;
  /** Stores a file. Returns a content block for a question. */
  upload(file: File): Promise<Record<string, unknown> | null>;
  /** Shows the newest branch through a turn; without a turn, the newest branch of the session. */
  showBranch(turn?: string | null): unknown;
  /** Adds up to 100 turns before those in `turns`. */
  readEarlier(): Promise<unknown>;
  /** Sends the questions of `pending` again, or the one with this key. */
  retry(key?: string): unknown;
  /** Deletes a question of `pending`. */
  discard(key: string): unknown;
}

export interface SessionOptions extends Omit<Options, "after" | "idempotencyKey" | "signal" | "onEvent" | "onText" | "onState"> {
  /** A name, such as that of the user, under which the browser keeps questions until the server has them. */
  offline?: string;
  /** Fields of each question, such as `tools`. */
  defaults?: Record<string, unknown>;
}

export interface Session extends Acts {
  readonly shown: Shown;
  /** Stops reading. Turns go on, and questions are still sent. */
  close(): void;
}

/** Opens a session. `onChange` is called at each change. */
export function openSession(session: string, options?: SessionOptions & { onChange?: (shown: Shown) => void }): Session;

/** Deletes the questions that the browser keeps under `offline`, for example when the user logs out. */
export function forget(options: { offline: string; url?: string }): Promise<void>;

/** Returns the text of the last message of a turn's `input`; "" for a message without text, such as the result of a tool. */
export function textOf(input: Message[]): string;
