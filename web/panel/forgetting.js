// Entries that are about to be forgotten: gone from sight at once, from disk when nobody has undone it.

import { forget } from "../lib/routes.js"

const UNDO_MS = 6000
const AT_ONCE = 500 // ids in one request

/** changed(): what is hidden changed; failed(error). */
export class Forgetting {
  constructor({ changed, failed }) {
    Object.assign(this, { changed, failed })
    this.waiting = null // { cache, ids, timer }
    // A page that is closed meanwhile has still been told to forget.
    addEventListener("pagehide", () => this.commit(true))
  }

  /** Whether an entry is hidden already. */
  has(id) {
    return this.waiting?.ids.has(id) ?? false
  }

  get count() {
    return this.waiting?.ids.size ?? 0
  }

  async begin(cache, ids) {
    await this.commit()
    this.waiting = { cache, ids: new Set(ids), timer: setTimeout(() => this.commit(), UNDO_MS) }
    this.changed()
  }

  undo() {
    clearTimeout(this.waiting?.timer)
    this.waiting = null
    this.changed()
  }

  async commit(closing = false) {
    const { waiting } = this
    if (!waiting) return
    clearTimeout(waiting.timer)
    const ids = [...waiting.ids]
    try {
      for (let start = 0; start < ids.length; start += AT_ONCE) {
        await forget(waiting.cache, ids.slice(start, start + AT_ONCE), closing)
      }
    } catch (error) {
      this.failed(error)
    }
    if (this.waiting === waiting) this.waiting = null
    this.changed()
  }
}
