// The cache as an album: a sidebar tab that lists, finds, shows, pins, shares and forgets entries.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { h, icon } from "../lib/dom.js"
import { bytes, moment, number, said, t } from "../lib/i18n.js"
import * as routes from "../lib/routes.js"
import { openWorkflow, startFrom } from "./actions.js"
import { Detail } from "./detail.js"
import { space, totals } from "./figures.js"
import { Filters } from "./filters.js"
import { Forgetting } from "./forgetting.js"
import { Grid } from "./grid.js"
import { Transfer } from "./transfer.js"

const SETTLE_MS = 300 // several changes in a row are one
const POLL_MS = 20_000 // what other processes changed sends no event

export class Panel {
  constructor() {
    this.head = h("div", { class: "chorus-head" })
    this.filters = new Filters(() => this.restart())
    this.bar = h("div", { class: "chorus-selection", role: "toolbar", "aria-label": t("selection.label"), hidden: true })
    this.state = h("div", { class: "chorus-state", role: "status" })
    this.undo = h("div", { class: "chorus-undo", role: "status", "aria-live": "polite" })
    this.forgetting = new Forgetting({ changed: () => this.forgettingChanged(), failed: (error) => this.failed(error) })
    this.grid = new Grid({
      label: t("panel.entries"),
      load: (offset, limit) => this.load(offset, limit),
      draw: (entry) => this.tile(entry),
      open: (entry) => this.open(entry.id),
      act: (key, entries) => this.act(key, entries),
      selected: (chosen) => this.selection(chosen),
      failed: (error) => this.failed(error),
    })
    this.detail = new Detail({
      back: () => this.back(),
      open: (id) => this.open(id),
      pin: async (entry) => (await this.pin([entry], !entry.pinned)) && this.detail.show(this.cache, entry.id),
      export: (entry) => this.transfer.export(this.cache, [entry]),
      forget: (entry) => this.forget([entry]),
      workflow: (entry) => this.attempt(() => openWorkflow(this.cache, entry)),
      source: (entry) => this.attempt(() => startFrom(this.cache, entry)),
      failed: (error) => this.failed(error),
    })
    this.transfer = new Transfer({
      cache: () => this.cache,
      limit: () => this.stats?.limit,
      before: () => this.forgetting.commit(), // else what comes back would be forgotten after all
      after: () => this.soon(),
    })
    const tools = h("div", { class: "chorus-row chorus-tools" }, this.transfer.button, this.transfer.input)
    this.album = h("div", { class: "chorus-album" }, this.head, this.filters.element, tools, this.bar, this.state, this.grid.element)
    this.root = h("div", { class: "chorus chorus-panel" }, this.transfer.element, this.album, this.detail.element, this.undo)
    this.transfer.acceptDrops(this.root)
    this.detail.element.hidden = true
    api.addEventListener("chorus.changed", ({ detail }) => detail.cache === this.cache || !this.cache ? this.soon() : undefined)
    api.addEventListener("reconnected", () => this.soon())
    api.addEventListener("chorus.moved", () => (this.started = this.start()))
    setInterval(() => this.poll(), POLL_MS)
  }

  /** Put the panel into the sidebar's element; called again whenever the host draws the tab. */
  show(element) {
    if (this.root.parentElement === element) return
    element.replaceChildren(this.root)
    element.style.height = "100%"
    this.started = this.start()
  }

  get visible() {
    return this.root.isConnected && this.root.offsetParent !== null
  }

  /** Which caches there are, then everything of the one that is shown. */
  async start() {
    this.say(t("state.loading"))
    try {
      this.status = await routes.status()
      this.filters.allowMeaning(this.status.meaning)
      if (this.status.fault) return this.failed(new Error(said(this.status.fault)))
      const { caches } = this.status
      if (!caches.includes(this.cache)) this.cache = caches.includes("default") ? "default" : caches[0]
      this.caches()
      await this.figures()
      await this.restart()
    } catch (error) {
      this.failed(error)
    }
  }

  async figures() {
    if (!this.cache) {
      this.stats = null
      this.head.replaceChildren()
      return
    }
    this.stats = await routes.stats(this.cache)
    this.filters.offer(this.stats)
    this.head.replaceChildren(...[this.chooser, space(this.stats), totals(this.stats)].filter(Boolean))
  }

  caches() {
    const { caches } = this.status
    const change = (event) => {
      this.cache = event.target.value
      this.back()
      this.start()
    }
    const options = caches.map((name) => h("option", { value: name, selected: name === this.cache }, name))
    const select = h("select", { "aria-label": t("panel.cache"), onchange: change }, options)
    this.chooser = caches.length > 1 && h("div", { class: "chorus-row" }, t("panel.cache"), select)
  }

  async load(offset, limit) {
    if (!this.cache) return { total: 0, entries: [] }
    return routes.entries(this.cache, { ...this.filters.query(), offset, limit })
  }

  async restart() {
    await this.grid.restart()
    this.describe()
  }

  soon() {
    clearTimeout(this.settling)
    this.settling = setTimeout(() => this.refresh(), SETTLE_MS)
  }

  /** Bring what is shown up to date; entries and scroll position stay. */
  async refresh() {
    if (!this.visible) return
    if (!this.cache) return this.start()
    try {
      await this.figures()
      await this.grid.refresh()
      this.describe()
      if (this.detail.id && !this.detail.element.hidden) await this.detail.show(this.cache, this.detail.id)
    } catch (error) {
      this.failed(error)
    }
  }

  async poll() {
    if (!this.visible || !this.cache || document.hidden) return
    try {
      const { version, hits } = await routes.stats(this.cache)
      if (version !== this.stats?.version || hits !== this.stats?.hits) await this.refresh()
    } catch (error) {
      this.failed(error)
    }
  }

  // -- what is said

  say(...content) {
    this.state.replaceChildren(...content)
    this.state.hidden = !content.length
  }

  /** Nothing, or why the grid is empty and what to do. */
  describe() {
    if (this.grid.total) return this.say()
    if (this.stats?.entries) {
      const reset = h("button", { class: "chorus-button", onclick: () => this.filters.reset() }, t("state.reset"))
      return this.say(h("p", {}, t("state.noneFound")), reset)
    }
    this.say(h("p", {}, h("b", {}, t("state.empty"))), h("p", { class: "chorus-quiet" }, t("state.emptyAdvice")))
  }

  failed(error) {
    const again = h("button", { class: "chorus-button", onclick: () => this.start() }, icon("refresh"), t("state.again"))
    const what = error.code === "offline" ? t("state.offline") : t("state.failed", { message: error.message })
    this.say(h("p", { role: "alert" }, what), again)
  }

  async attempt(work) {
    try {
      await work()
      return true
    } catch (error) {
      const detail = error.code === "offline" ? t("state.offline") : error.message
      app.extensionManager.toast.add({ severity: "error", summary: "Chorus", detail, life: 8000 })
      return false
    }
  }

  // -- entries

  tile(entry) {
    if (this.forgetting.has(entry.id)) return h("div", { class: "chorus-tile chorus-going" })
    const facts = [
      entry.score !== undefined && t("tile.score", { score: number(entry.score, 2) }),
      entry.hits > 0 && t("tile.hits", { hits: number(entry.hits) }),
      bytes(entry.bytes),
    ].filter(Boolean)
    const label = [entry.prompt, t(entry.source ? "tile.full" : "tile.reused"), entry.pinned && t("tile.pinned"), ...facts, moment(entry.created)]
    return h(
      "div",
      { class: "chorus-tile", "aria-label": label.filter(Boolean).join(", "), title: entry.prompt, dataset: { id: entry.id } },
      h("div", { class: "chorus-picture" }, this.picture(entry), h("span", { class: "chorus-marks" }, this.marks(entry))),
      h("span", { class: "chorus-check", "aria-hidden": "true" }, icon("check")),
      h("div", { class: "chorus-caption" }, entry.prompt),
      h("div", { class: "chorus-quiet chorus-line" }, facts.join(" · ")),
    )
  }

  picture(entry) {
    if (!entry.preview) return h("span", { class: "chorus-quiet" }, icon("image"))
    // All frames one below the other, cut off after the first, for people who want no motion.
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches
    const address = still ? routes.framesAddress(this.cache, entry.id) : routes.previewAddress(this.cache, entry.id)
    return h("img", { src: address, class: still ? "chorus-still" : "", alt: "", decoding: "async", draggable: "false" })
  }

  marks(entry) {
    return [entry.pinned && icon("thumbtack"), !entry.source && h("span", { title: t("tile.reused") }, icon("bolt"))].filter(Boolean)
  }

  open(id) {
    this.album.hidden = true
    this.detail.element.hidden = false
    return this.detail.show(this.cache, id)
  }

  back() {
    if (this.detail.element.hidden) return
    this.detail.leave()
    this.detail.element.hidden = true
    this.album.hidden = false
    this.grid.layout()
    if (this.grid.total) this.grid.focus(this.grid.active)
  }

  selection(chosen) {
    const entries = [...chosen.values()]
    this.bar.hidden = !entries.length
    const button = (name, symbol, action) =>
      h("button", { class: "chorus-button", onclick: action, title: t(`action.${name}`), "aria-label": t(`action.${name}`) }, icon(symbol))
    this.bar.replaceChildren(
      h("span", { role: "status" }, t("selection.count", { count: number(entries.length) })),
      h("button", { class: "chorus-button", onclick: () => this.grid.all() }, t("selection.all", { count: number(this.grid.total) })),
      button("pin", "thumbtack", () => this.pin(entries, true)),
      button("unpin", "lock-open", () => this.pin(entries, false)),
      button("export", "file-export", () => this.transfer.export(this.cache, entries)),
      button("forget", "trash", () => this.forget(entries)),
      button("none", "times", () => this.grid.none()),
    )
  }

  /** A key pressed on entries in the grid; whether it meant something. */
  act(key, entries) {
    if (key === "Delete" || key === "Backspace") this.forget(entries)
    else if (key === "p") this.pin(entries, !entries.every((entry) => entry.pinned))
    else return false
    return true
  }

  pin(entries, pinned) {
    return this.attempt(async () => {
      for (let start = 0; start < entries.length; start += 500) {
        await routes.pin(this.cache, entries.slice(start, start + 500).map((entry) => entry.id), pinned)
      }
      await this.refresh()
    })
  }

  forget(entries) {
    this.back()
    this.grid.none()
    return this.forgetting.begin(this.cache, entries.map((entry) => entry.id))
  }

  forgettingChanged() {
    const { count } = this.forgetting
    const undo = h("button", { class: "chorus-button", onclick: () => this.forgetting.undo() }, icon("undo"), t("undo.button"))
    this.undo.replaceChildren(...(count ? [h("span", {}, t("undo.forgotten", { count: number(count) })), undo] : []))
    this.grid.redraw()
    if (!count) this.soon()
  }
}
