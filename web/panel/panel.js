// The cache as an album: a sidebar tab that lists, finds, shows, pins, shares and forgets entries.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { become, fillSelect, h, icon } from "../lib/dom.js"
import { bytes, moment, number, said, t } from "../lib/i18n.js"
import * as routes from "../lib/routes.js"
import { openWorkflow, startFrom } from "./actions.js"
import { Detail } from "./detail.js"
import { space, totals } from "./figures.js"
import { Filters } from "./filters.js"
import { Forgetting } from "./forgetting.js"
import { Grid } from "./grid.js"
import { State } from "./state.js"
import { Transfer } from "./transfer.js"

const SETTLE_MS = 300 // several changes in a row are one
const POLL_MS = 20_000 // what other processes changed sends no event
const AT_ONCE = 500 // ids in one request

const wordsFor = (error) => (error.code === "offline" ? t("state.offline") : error.message)

/** The panel. Its state is in `state`; an action goes to the cache of the entries it is about, see `shown`. */
export class Panel {
  constructor() {
    this.state = new State((now, before) => this.draw(now, before))
    this.chooser = h("select", { "aria-label": t("panel.cache"), onchange: (event) => this.choose(event.target.value) })
    this.choice = h("div", { class: "chorus-row", hidden: true }, t("panel.cache"), this.chooser)
    this.figures = h("div", { class: "chorus-head" })
    this.head = h("div", { class: "chorus-head" }, this.choice, this.figures)
    this.filters = new Filters(() => this.list())
    this.bar = h("div", { class: "chorus-selection", role: "toolbar", "aria-label": t("selection.label"), hidden: true })
    this.message = h("div", { class: "chorus-state", role: "status" })
    this.undo = h("div", { class: "chorus-undo", role: "status", "aria-live": "polite" })
    this.forgetting = new Forgetting(this.state, (error) => this.failed(error))
    this.grid = new Grid({
      label: t("panel.entries"),
      load: (offset, limit) => this.load(offset, limit),
      loaded: (total, entries) => this.loaded(total, entries),
      draw: (entry) => this.tile(entry),
      open: (entry) => this.open(entry.cache, entry.id),
      act: (key, entries) => this.act(key, entries),
      chosen: () => this.state.now.chosen,
      choose: (chosen) => this.state.change({ chosen }),
      failed: (error) => this.failed(error),
    })
    this.detail = new Detail({
      back: () => this.back(),
      open: (cache, id) => this.open(cache, id),
      pin: (entry) => this.pin([entry], !entry.pinned),
      export: (entry) => this.export([entry]),
      forget: (entry) => this.forget([entry]),
      workflow: (entry) => this.attempt(() => openWorkflow(entry)),
      source: (entry) => this.attempt(() => startFrom(entry)),
    })
    this.transfer = new Transfer({
      cache: () => this.state.now.cache,
      limit: () => this.state.now.stats?.limit,
      before: () => this.forgetting.commit(), // else what comes back would be forgotten after all
      after: () => this.soon(),
    })
    const tools = h("div", { class: "chorus-row chorus-tools" }, this.transfer.button, this.transfer.input)
    this.album = h("div", { class: "chorus-album" }, this.head, this.filters.element, tools, this.bar, this.message, this.grid.element)
    this.root = h("div", { class: "chorus chorus-panel" }, this.transfer.element, this.album, this.detail.element, this.undo)
    this.transfer.acceptDrops(this.root)
    api.addEventListener("chorus.changed", ({ detail }) => {
      const { cache } = this.state.now
      if (detail.cache === cache || !cache) this.soon()
    })
    api.addEventListener("reconnected", () => this.soon())
    api.addEventListener("chorus.moved", () => {
      this.forgetting.undo() // a cache of the same name in another place is not the one that was shown
      this.start()
    })
    setInterval(() => this.poll(), POLL_MS)
  }

  /** Put the panel into the sidebar's element; called again whenever the host draws the tab. */
  show(element) {
    if (this.root.parentElement === element) return
    element.replaceChildren(this.root)
    element.style.height = "100%"
    this.start()
    this.onceShown?.()
    this.onceShown = undefined
  }

  get visible() {
    return this.root.isConnected && this.root.offsetParent !== null
  }

  // -- what is known

  /** Which caches there are, then everything of the one that is shown. */
  async start() {
    this.state.change({ message: "loading" })
    try {
      const status = await routes.status()
      this.state.change({ status })
      if (status.fault) return this.failed(new Error(said(status.fault)))
      const { caches } = status
      const { cache, open } = this.state.now
      if (!caches.includes(cache)) {
        this.state.change({ cache: (caches.includes("default") ? "default" : caches[0]) ?? null })
        if (open) this.tell("warn", t("entry.gone"))
      }
      await this.everything()
    } catch (error) {
      this.failed(error)
    }
  }

  /** Show another cache: everything of it. */
  async choose(cache) {
    this.state.change({ cache, message: "loading" })
    await this.everything()
  }

  /** Load figures, the open entry and the list of the cache that is shown. */
  async everything() {
    try {
      await Promise.all([this.loadStats(), this.loadOpen()])
      await this.list()
    } catch (error) {
      this.failed(error)
    }
  }

  async loadStats() {
    const { cache } = this.state.now
    if (!cache) return
    const stats = await routes.stats(cache)
    this.state.learn(cache, { stats })
  }

  async loadOpen() {
    const { cache, open } = this.state.now
    if (!open) return
    let found
    try {
      found = { entry: await routes.entry(cache, open.id) }
    } catch (error) {
      found = error.code === "no_such_entry" ? { entry: null } : { entry: open.entry, error: wordsFor(error) }
    }
    this.state.learn(cache, (now) => (now.open?.id === open.id ? { open: { id: open.id, ...found } } : {}))
  }

  /** List what answers the filters, from the beginning. */
  async list() {
    this.state.change({ chosen: new Map() })
    await this.grid.restart()
  }

  async load(offset, limit) {
    const { cache } = this.state.now
    return cache ? routes.entries(cache, { ...this.filters.query(), offset, limit }) : { total: 0, entries: [] }
  }

  /** Entries were listed; those that are selected are these from now on. */
  loaded(total, entries) {
    const { chosen } = this.state.now
    const again = entries.filter(({ id }) => chosen.has(id)).map((entry) => [entry.id, entry])
    this.state.change({ total, message: null, ...(again.length ? { chosen: new Map([...chosen, ...again]) } : {}) })
  }

  soon() {
    clearTimeout(this.settling)
    this.settling = setTimeout(() => this.refresh(), SETTLE_MS)
  }

  /** Bring what is shown up to date; it changes in place. */
  async refresh() {
    if (!this.visible) return
    if (!this.state.now.cache) return this.start()
    try {
      await Promise.all([this.loadStats(), this.loadOpen(), this.grid.refresh()])
    } catch (error) {
      this.failed(error)
    }
  }

  async poll() {
    const { cache, stats } = this.state.now
    if (!this.visible || !cache || document.hidden) return
    try {
      const { version, hits } = await routes.stats(cache)
      if (version !== stats?.version || hits !== stats?.hits) await this.refresh()
    } catch (error) {
      this.failed(error)
    }
  }

  // -- what is shown

  /** Bring every view up to date with the state. */
  draw(now, before) {
    const changed = (...names) => names.some((name) => now[name] !== before[name])
    if (changed("cache")) this.grid.clear()
    if (changed("status", "cache")) this.drawChooser(now)
    if (changed("status")) this.filters.allowMeaning(now.status.meaning)
    if (changed("stats")) this.drawFigures(now)
    if (changed("chosen", "total")) this.drawSelection(now)
    if (changed("message", "total", "stats")) this.drawMessage(now)
    if (changed("going")) this.drawUndo(now)
    this.detail.draw(now.open)
    this.album.hidden = Boolean(now.open)
    if (changed("going")) this.grid.redraw()
    else if (changed("chosen")) this.grid.layout()
    if (before.going && !now.going) this.soon()
  }

  drawChooser({ status, cache }) {
    const caches = status?.caches ?? []
    const names = cache && !caches.includes(cache) ? [...caches, cache] : caches
    fillSelect(this.chooser, names.map((name) => [name, name]))
    this.chooser.value = cache ?? ""
    this.choice.hidden = names.length < 2
  }

  drawFigures({ stats }) {
    if (!stats) return this.figures.replaceChildren()
    this.filters.offer(stats)
    become(this.figures, h("div", { class: "chorus-head" }, space(stats), totals(stats)))
  }

  /** Nothing, or why the grid is empty and what to do. */
  drawMessage({ message, total, stats }) {
    const button = (name, action, ...symbol) => h("button", { class: "chorus-button", onclick: action }, symbol, t(name))
    const content = []
    if (message === "loading") content.push(t("state.loading"))
    else if (message) {
      const what = message.code === "offline" ? t("state.offline") : t("state.failed", { message: message.message })
      content.push(h("p", { role: "alert" }, what), button("state.again", () => this.start(), icon("refresh")))
    } else if (!total && stats?.entries) {
      content.push(h("p", {}, t("state.noneFound")), button("state.reset", () => this.filters.reset()))
    } else if (!total) {
      content.push(h("p", {}, h("b", {}, t("state.empty"))), h("p", { class: "chorus-quiet" }, t("state.emptyAdvice")))
    }
    this.message.replaceChildren(...content)
    this.message.hidden = !content.length
  }

  drawUndo({ going }) {
    const undo = () => h("button", { class: "chorus-button", onclick: () => this.forgetting.undo() }, icon("undo"), t("undo.button"))
    const waits = going && !going.final
    this.undo.replaceChildren(...(waits ? [h("span", {}, t("undo.forgotten", { count: number(going.ids.size) })), undo()] : []))
  }

  drawSelection({ chosen, total }) {
    const entries = [...chosen.values()]
    this.bar.hidden = !entries.length
    const button = (name, symbol, action) =>
      h("button", { class: "chorus-button", onclick: action, title: t(`action.${name}`), "aria-label": t(`action.${name}`) }, icon(symbol))
    this.bar.replaceChildren(
      h("span", { role: "status" }, t("selection.count", { count: number(entries.length) })),
      h("button", { class: "chorus-button", onclick: () => this.grid.all() }, t("selection.all", { count: number(total) })),
      button("pin", "thumbtack", () => this.pin(entries, true)),
      button("unpin", "lock-open", () => this.pin(entries, false)),
      button("export", "file-export", () => this.export(entries)),
      button("forget", "trash", () => this.forget(entries)),
      button("none", "times", () => this.grid.none()),
    )
  }

  tile(entry) {
    if (this.forgetting.has(entry)) return h("div", { class: "chorus-tile chorus-going" })
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
    const address = still ? routes.framesAddress(entry.cache, entry.id) : routes.previewAddress(entry.cache, entry.id)
    return h("img", { src: address, class: still ? "chorus-still" : "", alt: "", decoding: "async", draggable: "false" })
  }

  marks(entry) {
    return [entry.pinned && icon("thumbtack"), !entry.source && h("span", { title: t("tile.reused") }, icon("bolt"))].filter(Boolean)
  }

  // -- what a person does

  /** Open an entry of a cache, which is the one that is shown from then on. */
  open(cache, id) {
    const { activeElement } = document
    const another = cache !== this.state.now.cache
    this.state.change({ cache, open: { id, entry: undefined } })
    const focus = () => [activeElement, document.body].includes(document.activeElement) && this.detail.focus()
    if (this.visible) focus()
    else this.onceShown = focus
    another ? this.start() : this.loadOpen()
  }

  back() {
    if (!this.state.now.open) return
    this.state.change({ open: null })
    this.grid.layout()
    if (this.grid.total) this.grid.focus(this.grid.active)
  }

  /** A key pressed on entries in the grid; whether it meant something. */
  act(key, entries) {
    if (key === "Delete" || key === "Backspace") this.forget(entries)
    else if (key === "p") this.pin(entries, !entries.every((entry) => entry.pinned))
    else return false
    return true
  }

  /** Whether these are entries of the cache that is shown, the only ones that anything is done to; says so if not. */
  shown(entries) {
    const other = entries.find((entry) => entry.cache !== this.state.now.cache)
    if (other) this.tell("warn", t("state.notShown", { cache: other.cache }))
    return !other
  }

  pin(entries, pinned) {
    if (!this.shown(entries)) return undefined
    const [{ cache }] = entries
    return this.attempt(async () => {
      for (let start = 0; start < entries.length; start += AT_ONCE) {
        await routes.pin(cache, entries.slice(start, start + AT_ONCE).map((entry) => entry.id), pinned)
      }
      await this.refresh()
    })
  }

  export(entries) {
    return this.shown(entries) ? this.transfer.export(entries) : undefined
  }

  forget(entries) {
    if (!this.shown(entries)) return undefined
    this.back()
    this.grid.none()
    return this.forgetting.begin(entries)
  }

  async attempt(work) {
    try {
      await work()
    } catch (error) {
      this.tell("error", wordsFor(error))
    }
  }

  failed(error) {
    this.state.change({ message: error })
  }

  tell(severity, detail) {
    app.extensionManager.toast.add({ severity, summary: "Chorus", detail, life: 8000 })
  }
}
