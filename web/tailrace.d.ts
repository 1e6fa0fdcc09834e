/** The types of tailrace.js. */

export interface Options {
  /** The address of the gateway, or of a route of your server that passes requests on. Default: the page's own. */
  url?: string;
  /** A key or access token, sent as `Authorization: Bearer`. */
  key?: string;
  /** Further headers. A function is called for each connection, so that a token can be refreshed. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** Stops reading when it is aborted. The turn goes on. */
  signal?: AbortSignal;
  /** `resume`: the `cursor` after which to read. Default: from the start. */
  after?: string | number;
  /** `ask`: the same key and question give the same turn. Default: a random one. */
  idempotencyKey?: string;
  /** Tries in a row that may bring no event. Default: 12, about 45 seconds. `Infinity` never gives up. */
  triesMax?: number;
  /** Silence after which a connection is taken for lost, in milliseconds. Default: 40,000. */
  silenceMs?: number;
  fetch?: typeof globalThis.fetch;
  onEvent?: (event: TurnEvent, answer: Answer) => void;
  /** Receives the whole text so far, also after the answer began anew. */
  onText?: (text: string, answer: Answer) => void;
  onState?: (state: State, answer: Answer) => void;
}

export type State = "connecting" | "live" | "reconnecting" | "ended";

/** A count of 0 is absent. */
export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  cache_creation_input_tokens?: number;
  cache_read_input_tokens?: number;
}

interface Ending {
  usage: Usage;
  usage_is_estimated: boolean;
  cost_usd: number | null;
  text_chars: number;
  text_sha256: string;
  schema_valid?: boolean;
  /** The model that answered, if it is another one than that of `start`. */
  answered_by?: string;
}

/** An event of the dialect `tailrace` (docs/API.md). Later versions may add types: ignore those that you do not know. */
export type TurnEvent = { cursor: string } & (
  | { type: "start"; turn: string; session: string; model: string; queue_position?: number }
  | { type: "usage"; input_tokens: number; cache_creation_input_tokens: number; cache_read_input_tokens: number }
  | { type: "delta"; text: string; index?: number }
  | { type: "thinking"; text: string; index?: number }
  | { type: "citation"; index: number; citation: Record<string, unknown> }
  | { type: "tool_use"; index: number; id: string; name: string }
  | { type: "tool_use"; index: number; partial_json: string }
  | { type: "block"; index: number; block: { type: string; [field: string]: unknown } }
  | { type: "block"; index: number; delta: { type: string; [field: string]: unknown } }
  | { type: "event"; event: { type: string; [field: string]: unknown } }
  | { type: "waiting"; reason: string }
  | { type: "progress"; done: number; failed: number; of: number; cost_usd: number }
  | { type: "reset"; cause?: string; reason?: string }
  | ({ type: "steered"; turn: string } & Ending)
  | ({ type: "done"; outcome: "completed" | "cancelled"; stop_reason: string | null } & Ending)
  | ({ type: "error"; code: string; message: string } & Ending)
);

/**
 * `text` is the text that was read. If nothing comes after the cursor, the other fields are those of
 * `GET /v1/turns/{turn}`; `outcome` is null if that is refused. A failed turn has `code` and `message`.
 */
export interface End extends Partial<Ending> {
  turn: string;
  session: string | null;
  model: string | null;
  text: string;
  outcome: "completed" | "cancelled" | "failed" | null;
  stop_reason?: string | null;
  code?: string;
  message?: string;
}

export interface Answer extends AsyncIterable<TurnEvent> {
  readonly turn: string | null;
  readonly session: string | null;
  readonly model: string | null;
  /** The text that was read so far: after `resume` with a cursor, the text after it. */
  readonly text: string;
  readonly state: State;
  readonly cursor: string;
  /** The turn's end. Rejected when the turn was refused, the connection is lost for good, or reading was stopped. */
  readonly done: Promise<End>;
  /** Stops reading. The turn goes on. */
  close(): void;
  /** Ends the turn, and returns it as `GET /v1/turns/{turn}` does. */
  cancel(): Promise<Record<string, unknown>>;
  /**
   * Puts a message into the answer, which is read on here: after `steered`, the events are those of its answer.
   * `boundary` waits for the end of the content block.
   */
  steer(
    message: string | Record<string, unknown>[],
    options?: { at?: "now" | "boundary"; idempotencyKey?: string },
  ): Promise<Record<string, unknown>>;
}

/** Starts a turn. `question` is the message, or the body of `POST /v1/turns`. */
export function ask(question: string | Record<string, unknown>, options?: Options): Answer;

/** Reads a turn, from its start or after `options.after`. */
export function resume(turn: string, options?: Options): Answer;

/** A stream that is read from now on. Its events are for one loop, `onEvent`, or both. */
export interface Stream extends AsyncIterable<any> {
  readonly state: State;
  readonly cursor: string;
  /** Settled when the server answers 204, and rejected when the stream is refused, lost for good or closed. */
  readonly done: Promise<unknown>;
  close(): void;
}

/**
 * Reads a stream of JSON objects, such as `/v1/sessions/{session}/events`. The loop and `onEvent` receive each that has no name,
 * with its `cursor`.
 */
export function follow(
  path: string,
  options?: Omit<Options, "idempotencyKey" | "onEvent" | "onState" | "onText"> & {
    onEvent?: (event: any, stream: Stream) => void;
    onState?: (state: State, stream: Stream) => void;
  },
): Stream;

/** Sends a request and returns its JSON, or null for an empty response. It may be sent again after a lost connection: a POST needs an idempotency key. */
export function request(path: string, options?: Options, init?: RequestInit): Promise<any>;

/**
 * Sends the decision about a tool call. It may be sent again after a lost connection: the same decision changes nothing. When all
 * calls of the turn are decided, `next` is the turn that continues it.
 */
export function decide(
  session: string,
  call: string,
  decision: { result: string | object[]; is_error?: boolean } | { decision: "denied"; reason?: string },
  options?: Options,
): Promise<{ next: string | null; undecided_calls: string[]; waits_because: string | null; calls: any[] }>;

/**
 * Adds the text of a `delta` to `texts`, the texts of the content blocks, which begin as `[]`. Returns the text of the answer,
 * which was `before`. Blocks may be open at the same time: the answer has their texts in the order of the blocks.
 */
export function addText(texts: string[], delta: { text: string; index?: number }, before: string): string;

/** Returns a random name, for example as an idempotency key. */
export function randomName(): string;

export class TailraceError extends Error {
  readonly status?: number;
  /** A code of docs/ERRORS.md. */
  readonly code?: string;
  readonly retryAfterS?: number;
  /** Whether a later try may succeed. */
  readonly isTemporary?: boolean;
}
