// The server's requests. Every failure is an Error whose message is a sentence for people.

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The engine does not answer. Is `stm review` still running?");
  }
  if (!answer.ok) {
    const text = await answer.text();
    let words = text;
    try { words = JSON.parse(text).error ?? text; } catch { /* plain text */ }
    throw new Error(words);
  }
  return answer;
}

const post = (path, body) =>
  ask(path, { method: "POST", body: body === undefined ? undefined : JSON.stringify(body) });

export const state = async () => (await ask("/api/state")).json();

export async function plate(frame, size) {
  const answer = await ask(`/api/plate/${frame}?size=${size}`);
  return createImageBitmap(await answer.blob());
}

// A matte: its bitmap (white, the matte is the alpha) and the address of what made it.
export async function matte(frame, object, size) {
  const answer = await ask(`/api/matte/${frame}?object=${encodeURIComponent(object)}&size=${size}`);
  return { bitmap: await createImageBitmap(await answer.blob()), address: answer.headers.get("x-address") };
}

export async function confidence(frame, object) {
  const answer = await ask(`/api/confidence/${frame}?object=${encodeURIComponent(object)}`);
  return createImageBitmap(await answer.blob());
}

export async function startMask(frame, hints) {
  return createImageBitmap(await (await post(`/api/start/${frame}`, hints)).blob());
}

export function setKey(frame, object, mask, width, height, empty) {
  const query = `object=${encodeURIComponent(object)}&width=${width}&height=${height}&empty=${empty ? 1 : 0}`;
  return ask(`/api/key/${frame}?${query}`, { method: "POST", body: mask });
}

export const removeKey = (frame) => ask(`/api/key/${frame}`, { method: "DELETE" });
export const look = (frame) => post(`/api/look/${frame}`);
export const propagate = () => post("/api/propagate");
export const choose = (settings) => post("/api/settings", settings);
export const stop = () => post("/api/stop");
export const exportMattes = async (order) => (await post("/api/export", order)).json();
export const bundle = async (order) => (await post("/api/bundle", order)).json();
export const nukeText = async () => (await ask("/api/nuke")).text();

// Changes as they happen; `onLink(false)` where the connection is lost.
export function listen(onEvent, onLink) {
  const source = new EventSource("/api/events");
  source.onmessage = (message) => onEvent(JSON.parse(message.data));
  source.onopen = () => onLink(true);
  source.onerror = () => onLink(false);
}
