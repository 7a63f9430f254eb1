// The server's routes below /chorus/v1; docs/routes.md describes them.

import { api } from "../../../scripts/api.js"
import { said } from "./i18n.js"

/** What a route answered instead of what was asked. code: for programs; message: for the person at the screen, in the page's language. */
export class RouteError extends Error {
  constructor(code, message) {
    super(message)
    this.code = code
  }
}

async function ask(path, options) {
  let answer
  try {
    answer = await api.fetchApi(path, options)
  } catch {
    throw new RouteError("offline", "")
  }
  const body = await answer.json().catch(() => ({}))
  if (answer.ok) return body
  const { code = "failed", message = `${answer.status} ${answer.statusText}`, said: why = message } = body.error ?? {}
  throw new RouteError(code, said(why))
}

function post(path, body, keepalive = false) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), keepalive })
}

/** A POST of a file, or for one, with its progress in bytes: sent(bytes) on the way there, got(bytes) on the way back. */
function carry(path, type, body, { signal, sent, got }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest() // fetch does not tell how much it has sent
    request.open("POST", api.apiURL(path))
    request.setRequestHeader("Content-Type", type)
    if (api.user) request.setRequestHeader("Comfy-User", api.user)
    request.responseType = "blob" // which browsers keep on disk where it is large
    request.upload.addEventListener("progress", (event) => sent?.(event.loaded))
    request.addEventListener("progress", (event) => got?.(event.loaded))
    request.addEventListener("error", async () => {
      // Browsers do not say whether it was the connection or the whole server.
      const code = await status().then(() => "cut_off", (error) => error.code)
      reject(new RouteError(code, ""))
    })
    request.addEventListener("abort", () => reject(new RouteError("cancelled", "")))
    request.addEventListener("load", async () => {
      if (request.status === 200) return resolve(request.response)
      const { error } = await request.response.text().then(JSON.parse).catch(() => ({}))
      reject(new RouteError(error?.code ?? "failed", error?.message ?? `${request.status} ${request.statusText}`))
    })
    signal.addEventListener("abort", () => request.abort(), { once: true })
    request.send(body)
  })
}

const cachePath = (cache) => `/chorus/v1/caches/${encodeURIComponent(cache)}`
const entryPath = (cache, id) => `${cachePath(cache)}/entries/${id}`

export const status = () => ask("/chorus/v1/status")
export const stats = (cache) => ask(`${cachePath(cache)}/stats`)
/** Entries know their cache: what is done to one goes where it was listed, whatever is shown by then. */
export const entry = async (cache, id) => ({ ...(await ask(entryPath(cache, id))), cache })
export const workflow = (cache, id) => ask(`${entryPath(cache, id)}/workflow`)
export const pin = (cache, ids, pinned) => post(`${cachePath(cache)}/pin`, { ids, pinned })
export const forget = (cache, ids, keepalive = false) => post(`${cachePath(cache)}/forget`, { ids }, keepalive)
/** parts: folder, or url and blobs; "" takes the usual place back. */
export const choosePlace = (parts) => post("/chorus/v1/place", parts)
export const chooseLimit = (gigabytes) => post("/chorus/v1/limit", { gigabytes })

/** A bundle of entries, as a Blob. */
export const exportBundle = (cache, ids, following) =>
  carry(`${cachePath(cache)}/export`, "application/json", JSON.stringify({ ids }), following)

/** Take a bundle over: { added, present, refused, reasons, evicted }. */
export async function importBundle(cache, file, following) {
  const answer = await carry(`${cachePath(cache)}/import`, "application/zip", file, following)
  return JSON.parse(await answer.text())
}

/** A page of entries. query: the parameters of the route; those that are empty are left out. */
export async function entries(cache, query) {
  const asked = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined)
  const answer = await ask(`${cachePath(cache)}/entries?${new URLSearchParams(asked)}`)
  return { ...answer, entries: answer.entries.map((entry) => ({ ...entry, cache })) }
}

/** An address for <img>, which cannot send the header that names the user. */
const pictureAddress = (path) => api.apiURL(path + (api.user ? `?user=${encodeURIComponent(api.user)}` : ""))

export const previewAddress = (cache, id) => pictureAddress(`${entryPath(cache, id)}/preview`)
export const framesAddress = (cache, id) => pictureAddress(`${entryPath(cache, id)}/frames`)
