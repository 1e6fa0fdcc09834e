export interface ResumableFetchOptions {
  /** Base URLs of other gateways with the same log. They receive the credentials of the requests. */
  gateways?: string[];
  /** Sends the requests. Default: the global `fetch`. */
  fetch?: typeof fetch;
  /** After so many tries in a row without an event, the SDK gets the error of the cut. Default: 12. */
  triesMax?: number;
}

/** Returns a `fetch` for Anthropic's and OpenAI's SDKs: a streamed answer that is cut goes on after its last event. */
export function resumableFetch(options?: ResumableFetchOptions): (input: string | URL | Request, init?: RequestInit) => Promise<Response>;
