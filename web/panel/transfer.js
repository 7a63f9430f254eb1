// Bundles: entries as one file for other people, out of the cache and into it. One at a time.

import { api } from "../../../scripts/api.js"
import { h, icon } from "../lib/dom.js"
import { bytes, number, t } from "../lib/i18n.js"
import { exportBundle, importBundle } from "../lib/routes.js"

const FIRST_CACHE = "default" // made by an import where there is none yet
const ERRORS = ["not_a_bundle", "bundle_damaged", "bundle_version", "bundle_too_large", "cache_full", "no_space", "cut_off", "offline"]
const END = 22 // bytes at the end of a zip file that say, among others, how many members it has
const KEPT_MS = 60_000 // for the browser to have begun saving

/** cache(): its name; limit(): its bytes, where known; before(), after() an import. */
export class Transfer {
  constructor({ cache, limit, before, after }) {
    Object.assign(this, { cache, limit, before, after })
    this.input = h("input", { type: "file", accept: ".chorus,.zip,application/zip", hidden: true, "aria-label": t("bundle.choose") })
    this.input.addEventListener("change", () => {
      const [file] = this.input.files
      this.input.value = "" // so that the same file can be chosen again
      if (file) this.import(file)
    })
    this.button = h("button", { class: "chorus-button", title: t("bundle.choose"), onclick: () => this.input.click() }, icon("file-import"), t("bundle.import"))
    this.said = h("div", { role: "status", class: "chorus-said" })
    this.bar = h("progress", { "aria-label": t("bundle.label") })
    this.moved = h("span", { class: "chorus-quiet" })
    this.stop = h("button", { class: "chorus-button", onclick: () => this.running?.abort() }, t("bundle.cancel"))
    this.work = h("div", { class: "chorus-row chorus-work", hidden: true }, this.bar, this.moved, this.stop)
    this.shut = h("button", { class: "chorus-button", hidden: true, title: t("bundle.close"), "aria-label": t("bundle.close"), onclick: () => this.close() }, icon("times"))
    this.element = h("section", { class: "chorus-transfer", "aria-label": t("bundle.label") }, this.said, this.shut, this.work)
    api.addEventListener("chorus.import", ({ detail }) => detail.cache === this.taking && this.progress(detail.done, detail.of, number))
  }

  /** Let files that are dropped on `place` be imported. */
  acceptDrops(place) {
    const here = (event) => event.dataTransfer?.types.includes("Files")
    const mark = (on) => place.classList.toggle("chorus-dropping", on)
    place.dataset.drop = t("bundle.drop")
    place.addEventListener("dragover", (event) => {
      if (!here(event)) return
      event.preventDefault()
      event.stopPropagation() // the canvas opens files, too
      mark(true)
    })
    place.addEventListener("dragleave", (event) => place.contains(event.relatedTarget) || mark(false))
    place.addEventListener("drop", (event) => {
      if (!here(event)) return
      event.preventDefault()
      event.stopPropagation()
      mark(false)
      const { files } = event.dataTransfer
      if (files.length === 1) this.import(files[0])
      else this.alert(t("bundle.oneFile"))
    })
  }

  /** Save entries of one cache as one file. */
  export(entries) {
    const [{ cache }] = entries
    const total = entries.reduce((sum, entry) => sum + entry.bytes, 0)
    return this.run(t("bundle.exporting", { count: number(entries.length) }), async (signal) => {
      this.progress(0, total, bytes)
      const ids = entries.map((entry) => entry.id)
      const file = await exportBundle(cache, ids, { signal, got: (size) => this.progress(Math.min(size, total), total, bytes) })
      const count = await entriesIn(file)
      save(file, `chorus-${cache}-${count}.chorus`)
      const lost = entries.length - count
      this.say(
        h("p", {}, t("bundle.exported", { count: number(count), size: bytes(file.size) })),
        lost > 0 && h("p", {}, t("bundle.leftOut", { count: number(lost) })),
      )
    })
  }

  /** Take the entries of a file over. */
  import(file) {
    const cache = this.cache() ?? FIRST_CACHE
    const { name, size } = file
    return this.run(t("bundle.sending", { name }), async (signal) => {
      if (size > (this.limit() ?? Infinity)) return this.failed({ code: "bundle_too_large", message: `${name}: ${bytes(size)}` })
      await this.before()
      this.progress(0, size, bytes)
      const sent = (done) => {
        if (done < size) return this.progress(done, size, bytes)
        this.stop.hidden = true // the server has it all: what it takes it keeps
        this.taking = cache
        this.progress()
        this.say(t("bundle.checking", { name }))
      }
      const result = await importBundle(cache, file, { signal, sent })
      this.imported(name, result)
      this.after()
    })
  }

  imported(name, { added, present, refused, reasons, evicted }) {
    const counts = { name, added: number(added), present: number(present), refused: number(refused) }
    this.say(
      h("p", { role: refused ? "alert" : undefined }, t("bundle.imported", counts)),
      evicted > 0 && h("p", {}, t("bundle.evicted", { count: number(evicted) })),
      refused > 0 &&
        h(
          "details",
          {},
          h("summary", {}, t("bundle.reasons")),
          h("ul", { class: "chorus-notes" }, reasons.map(({ id, reason }) => h("li", {}, `${id.slice(0, 8)}: ${reason}`))),
        ),
    )
  }

  async run(text, work) {
    if (this.running) return this.say(t("bundle.busy"))
    this.running = new AbortController()
    this.element.setAttribute("aria-busy", "true")
    this.work.hidden = this.stop.hidden = false
    this.shut.hidden = true
    this.say(text)
    try {
      await work(this.running.signal)
    } catch (error) {
      this.failed(error)
    } finally {
      this.running = this.taking = undefined
      this.element.removeAttribute("aria-busy")
      this.work.hidden = true
      this.shut.hidden = false
    }
  }

  /** How far it is; nothing: nobody knows. */
  progress(done, of, shown) {
    if (of) Object.assign(this.bar, { value: done, max: of })
    else this.bar.removeAttribute("value")
    this.moved.textContent = of ? t("bundle.progress", { done: shown(done), of: shown(of) }) : ""
  }

  say(...content) {
    this.said.replaceChildren(...content.filter(Boolean))
  }

  alert(text, more = "") {
    this.say(h("p", { role: "alert", class: "chorus-wrong" }, text), more && h("p", { class: "chorus-quiet" }, more))
    this.shut.hidden = Boolean(this.running)
  }

  failed({ code, message }) {
    if (code === "cancelled") return this.say(t("bundle.cancelled"))
    if (ERRORS.includes(code)) this.alert(t(`bundle.error.${code}`), message)
    else this.alert(t("state.failed", { message }))
  }

  close() {
    this.say()
    this.shut.hidden = true
    if (this.button.checkVisibility()) this.button.focus()
  }
}

/** How many entries a bundle holds: the members that its end counts, less the manifest. */
async function entriesIn(file) {
  const end = new DataView(await file.slice(-END).arrayBuffer())
  return end.getUint16(10, true) - 1
}

function save(file, name) {
  const address = URL.createObjectURL(file)
  h("a", { href: address, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(address), KEPT_MS)
}
