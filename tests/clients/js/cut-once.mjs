/** Returns a fetch through `route`, whose first response is cut after 900 bytes. Adds each request's cursor to `cursors`. */
export const cutOnce = (route, cursors) => async (address, { signal, ...init }) => {
  const request = new Request(address, init);
  cursors.push(request.headers.get("last-event-id"));
  const response = await route(request);
  if (cursors.length > 1) return response;
  let rest = 900;
  const cut = new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk.subarray(0, rest));
      rest -= chunk.length;
      if (rest <= 0) controller.error(new TypeError("cut"));
    },
  });
  return new Response(response.body.pipeThrough(cut), { headers: response.headers });
};
