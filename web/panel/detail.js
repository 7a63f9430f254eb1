// One entry: its video, what it was asked, where it comes from, what came of it, and what can be done with it.

import { become, h, icon, svg } from "../lib/dom.js"
import { bytes, duration, moment, number, t } from "../lib/i18n.js"
import { Player } from "../lib/player.js"
import { previewAddress } from "../lib/routes.js"
import { sizeOf } from "./filters.js"

const MOST_CHILDREN = 5
const PLACE = { width: 74, height: 56, step: 64 }

/** actions: back(), pin(entry), export(entry), forget(entry), workflow(entry), source(entry), open(cache, id). */
export class Detail {
  constructor(actions) {
    this.actions = actions
    this.body = h("div", { class: "chorus-entry" })
    this.element = h("section", { class: "chorus-detail", "aria-label": t("entry.label"), tabindex: "-1", hidden: true }, this.bar(), this.body)
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return
      event.stopPropagation()
      this.actions.back()
    })
  }

  /** Draw the open entry, in place where it was drawn before. open: as in the panel's state. */
  draw(open) {
    this.element.hidden = !open
    if (!open?.entry) this.leave()
    if (!open) return
    if (open.entry && open.entry === this.entry) return
    if (open.entry) {
      const { cache, id } = this.entry ?? {}
      const same = open.entry.id === id && open.entry.cache === cache
      this.entry = open.entry
      same ? this.update() : this.begin()
    } else if (open.error) this.tell({ role: "alert" }, open.error)
    else if (open.entry === null) this.tell({}, t("entry.gone"))
    else this.tell({ class: "chorus-quiet" }, t("state.loading"))
  }

  /** Take the keyboard's focus: for a person who has just opened an entry, and for nobody else. */
  focus() {
    this.element.focus({ preventScroll: true })
  }

  tell(attributes, text) {
    this.body.replaceChildren(h("p", attributes, text))
  }

  leave() {
    this.entry = undefined
    this.player?.stop()
    this.body.replaceChildren()
  }

  bar() {
    return h("div", { class: "chorus-row" }, h("button", { class: "chorus-button", onclick: () => this.actions.back() }, icon("arrow-left"), t("entry.back")))
  }

  /** Draw an entry from nothing. */
  begin() {
    const { entry } = this
    this.player?.stop()
    this.player = entry.preview ? new Player(entry.cache, entry.id, entry.shape, t("result.preview", { prompt: entry.prompt })) : null
    const video = this.player?.canvas ?? h("p", { class: "chorus-quiet" }, t("entry.noPreview"))
    this.parts = this.changing()
    this.parts.family.addEventListener("click", (event) => this.relative(event))
    this.parts.family.addEventListener("keydown", (event) => ["Enter", " "].includes(event.key) && this.relative(event))
    const { buttons, family, facts, settings } = this.parts
    this.body.replaceChildren(h("div", { class: "chorus-video" }, video), h("p", { class: "chorus-prompt" }, entry.prompt), buttons, family, facts, settings)
    this.element.scrollTop = 0
  }

  /** Bring what can change up to date. */
  update() {
    for (const [name, fresh] of Object.entries(this.changing())) become(this.parts[name], fresh)
  }

  changing() {
    const { entry } = this
    return { buttons: this.buttons(entry), family: this.family(entry), facts: this.facts(entry), settings: this.settings(entry) }
  }

  buttons({ source, workflow, pinned }) {
    const button = (name, symbol, action, shown = true, pressed = undefined) =>
      shown && h("button", { class: "chorus-button", "aria-pressed": pressed, onclick: () => action(this.entry) }, icon(symbol), t(`action.${name}`))
    return h(
      "div",
      { class: "chorus-buttons" },
      button("source", "bolt", this.actions.source, source),
      button("workflow", "sitemap", this.actions.workflow, workflow),
      button(pinned ? "unpin" : "pin", "thumbtack", this.actions.pin, true, String(pinned)),
      button("export", "file-export", this.actions.export),
      button("forget", "trash", this.actions.forget),
    )
  }

  /** A member of the family was chosen. */
  relative(event) {
    const { id } = event.target.closest("[data-id]")?.dataset ?? {}
    if (id && id !== this.entry.id) this.actions.open(this.entry.cache, id)
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
    if (!parent && !made.total) return h("div", { hidden: true })
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
    const attributes = {
      transform: `translate(${x} ${y})`,
      class: self ? "chorus-self" : "chorus-relative",
      role: self ? "img" : "button",
      tabindex: self ? undefined : "0",
      "aria-label": member.prompt,
      "data-id": member.id,
    }
    return svg(
      "g",
      attributes,
      svg("title", {}, member.prompt),
      svg("rect", { width: String(PLACE.width), height: String(PLACE.height), rx: "5" }),
      member.preview &&
        svg("image", {
          href: previewAddress(this.entry.cache, member.id),
          width: String(PLACE.width),
          height: String(PLACE.height),
          preserveAspectRatio: "xMidYMid slice",
        }),
    )
  }
}
