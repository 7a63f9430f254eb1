// Entries that are about to be forgotten: gone from sight at once, from disk when nobody has undone it.

import { forget } from "../lib/routes.js"

const UNDO_MS = 6000
const AT_ONCE = 500 // ids in one request

/** state: of the panel, whose `going` this is; failed(error). */
export class Forgetting {
  constructor(state, failed) {
    Object.assign(this, { state, failed })
    // A page that is closed meanwhile has still been told to forget.
    addEventListener("pagehide", () => this.commit(true))
  }

  get going() {
    return this.state.now.going
  }

  /** Whether an entry is hidden already. Another cache may hold the same entry. */
  has(entry) {
    return this.going?.cache === entry.cache && this.going.ids.has(entry.id)
  }

  /** Hide entries of one cache, and forget them soon. */
  async begin(entries) {
    await this.commit()
    this.timer = setTimeout(() => this.commit(), UNDO_MS)
    this.state.change({ going: { cache: entries[0].cache, ids: new Set(entries.map((entry) => entry.id)), final: false } })
  }

  undo() {
    clearTimeout(this.timer)
    if (this.going && !this.going.final) this.state.change({ going: null })
  }

  /** Forget for good what waits; resolves when that is done. closing: the page goes, the requests must outlive it. */
  commit(closing = false) {
    if (this.going && !this.going.final) this.running = this.finish(closing)
    return this.running
  }

  async finish(closing) {
    clearTimeout(this.timer)
    const going = { ...this.going, final: true }
    this.state.change({ going })
    const ids = [...going.ids]
    try {
      for (let start = 0; start < ids.length; start += AT_ONCE) {
        await forget(going.cache, ids.slice(start, start + AT_ONCE), closing)
      }
    } catch (error) {
      this.failed(error)
    }
    if (this.going === going) this.state.change({ going: null })
  }
}
