// One entry: its video, what it was asked, where it comes from, what came of it, and what can be done with it.

import { h, icon, svg } from "../lib/dom.js"
import { bytes, duration, moment, number, t } from "../lib/i18n.js"
import { Player } from "../lib/player.js"
import { entry as fetchEntry, previewAddress } from "../lib/routes.js"
import { sizeOf } from "./filters.js"

const MOST_CHILDREN = 5
const PLACE = { width: 74, height: 56, step: 64 }

/** actions: back(), pin(entry), export(entry), forget(entry), workflow(entry), source(entry), open(id), failed(error). */
export class Detail {
  constructor(actions) {
    this.actions = actions
    this.element = h("section", { class: "chorus-detail", "aria-label": t("entry.label"), tabindex: "-1" })
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return
      event.stopPropagation()
      this.actions.back()
    })
  }

  async show(cache, id) {
    this.cache = cache
    this.id = id
    this.element.replaceChildren(this.bar(), h("p", { class: "chorus-quiet" }, t("state.loading")))
    try {
      const entry = await fetchEntry(cache, id)
      if (this.id === id) this.draw(entry)
    } catch (error) {
      if (this.id !== id) return
      if (error.code !== "no_such_entry") this.actions.failed(error)
      this.element.replaceChildren(this.bar(), h("p", {}, t("entry.gone")))
    }
  }

  leave() {
    this.id = undefined
    this.player?.stop()
    this.element.replaceChildren()
  }

  bar(...more) {
    const back = h("button", { class: "chorus-button", onclick: () => this.actions.back() }, icon("arrow-left"), t("entry.back"))
    return h("div", { class: "chorus-row" }, back, ...more)
  }

  draw(entry) {
    this.player?.stop()
    this.player = entry.preview ? new Player(this.cache, entry.id, entry.shape, t("result.preview", { prompt: entry.prompt })) : null
    const video = this.player?.canvas ?? h("p", { class: "chorus-quiet" }, t("entry.noPreview"))
    const parts = [
      this.bar(),
      h("div", { class: "chorus-video" }, video),
      h("p", { class: "chorus-prompt" }, entry.prompt),
      this.buttons(entry),
      this.family(entry),
      this.facts(entry),
      this.settings(entry),
    ]
    this.element.replaceChildren(...parts.filter(Boolean))
    this.element.focus({ preventScroll: true })
  }

  buttons(entry) {
    const button = (name, symbol, action, shown = true, pressed = undefined) =>
      shown && h("button", { class: "chorus-button", "aria-pressed": pressed, onclick: () => action(entry) }, icon(symbol), t(`action.${name}`))
    return h(
      "div",
      { class: "chorus-buttons" },
      button("source", "bolt", this.actions.source, entry.source),
      button("workflow", "sitemap", this.actions.workflow, entry.workflow),
      button(entry.pinned ? "unpin" : "pin", "thumbtack", this.actions.pin, true, String(entry.pinned)),
      button("export", "file-export", this.actions.export),
      button("forget", "trash", this.actions.forget),
    )
  }

  facts(entry) {
    const facts = [
      ["created", moment(entry.created)],
      ["used", moment(entry.used)],
      ["size", entry.size && t("entry.size", sizeOf(entry.size))],
      ["steps", number(entry.steps)],
      ["sampler", entry.sampler],
      ["seed", entry.settings.seed],
      ["seconds", duration(entry.seconds)],
      ["hits", number(entry.hits)],
      ["saved", duration(entry.saved)],
      ["bytes", bytes(entry.bytes)],
      ["model", `${entry.latent_format} ${entry.weights.slice(0, 12)}`],
      ["patches", entry.patches ? entry.patches.slice(0, 12) : t("entry.none")],
      ["task", entry.task],
      ["embedder", entry.embedder],
    ]
    const rows = facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
    return h("dl", { class: "chorus-facts" }, rows.map(([name, value]) => [h("dt", {}, t(`fact.${name}`)), h("dd", {}, value)]))
  }

  settings(entry) {
    const shown = { id: entry.id, sigmas: entry.sigmas, tensors: entry.tensors, ...entry.settings }
    return h("details", {}, h("summary", {}, t("entry.all")), h("pre", {}, JSON.stringify(shown, null, 1)))
  }

  /** Parent, this one, and children, joined by lines. */
  family(entry) {
    const { made_from: parent, made } = entry
    if (!parent && !made.total) return null
    const children = made.entries.slice(0, MOST_CHILDREN)
    const rows = Math.max(1, children.length)
    const middle = ((rows - 1) * PLACE.step) / 2
    const places = [
      ...(parent ? [[parent, 0, middle]] : []),
      [entry, 110, middle],
      ...children.map((child, index) => [child, 220, index * PLACE.step]),
    ]
    const line = (x, y0, y1) => svg("path", { d: `M${x} ${y0} C${x + 18} ${y0} ${x + 18} ${y1} ${x + 36} ${y1}` })
    const half = PLACE.height / 2
    const lines = [
      parent && line(PLACE.width, middle + half, middle + half),
      ...children.map((_, index) => line(110 + PLACE.width, middle + half, index * PLACE.step + half)),
    ].filter(Boolean)
    const tree = svg(
      "svg",
      { class: "chorus-family", viewBox: `-2 -2 300 ${rows * PLACE.step}`, role: "group", "aria-label": t("entry.family") },
      lines,
      places.map(([member, x, y]) => this.member(member, x, y, member.id === entry.id)),
    )
    const more = made.total > children.length && h("p", { class: "chorus-quiet" }, t("entry.more", { count: number(made.total - children.length) }))
    return h("div", {}, h("h4", {}, t("entry.family")), tree, more)
  }

  member(member, x, y, self) {
    const go = () => this.actions.open(member.id)
    const known = {
      transform: `translate(${x} ${y})`,
      class: self ? "chorus-self" : "chorus-relative",
      role: self ? "img" : "button",
      "aria-label": member.prompt,
    }
    const events = self ? {} : { tabindex: "0", onclick: go, onkeydown: (event) => ["Enter", " "].includes(event.key) && go() }
    return svg(
      "g",
      { ...known, ...events },
      svg("title", {}, member.prompt),
      svg("rect", { width: String(PLACE.width), height: String(PLACE.height), rx: "5" }),
      member.preview &&
        svg("image", {
          href: previewAddress(this.cache, member.id),
          width: String(PLACE.width),
          height: String(PLACE.height),
          preserveAspectRatio: "xMidYMid slice",
        }),
    )
  }
}
