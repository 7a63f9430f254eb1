// Texts in the language that ComfyUI is set to: locales/<language>/main.json, which ComfyUI itself serves.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

let texts = {}
let english = {}

/** Load the texts; once, before anything is shown. */
export async function loadTexts() {
  const all = await (await api.fetchApi("/i18n")).json()
  english = all.en?.chorus ?? {}
  const [base] = language().split("-")
  texts = all[language()]?.chorus ?? all[base]?.chorus ?? english
}

/** The language's code as ComfyUI has it. */
export function language() {
  return app.extensionManager.setting.get("Comfy.Locale") ?? "en"
}

function find(tree, key) {
  return key.split(".").reduce((branch, part) => branch?.[part], tree)
}

/** The text `key` with {name} replaced by values.name. */
export function t(key, values = {}) {
  const text = find(texts, key) ?? find(english, key) ?? key
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}

const TWO_DIGITS = new Set(["score", "threshold"]) // the server too: chorus/messages.py

/** A message of the server, { code, values, text }: by its code where the language knows it, else as the server put it. */
export function said(message) {
  if (typeof message !== "object" || message === null) return String(message ?? "")
  const key = `said.${message.code}`
  if (!find(texts, key)) return message.text
  return t(key, Object.fromEntries(Object.entries(message.values).map(([name, value]) => [name, valueOf(name, value)])))
}

function valueOf(name, value) {
  if (Array.isArray(value)) return value.map((one) => valueOf(name, one)).join("; ")
  if (typeof value !== "number") return said(value)
  if (TWO_DIGITS.has(name)) return number(value, 2)
  return new Intl.NumberFormat(language(), { maximumFractionDigits: 3 }).format(value)
}

/** A number in the language's form. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(language(), { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value)
}

/** A share, 0 to 1. */
export function percent(share) {
  return new Intl.NumberFormat(language(), { style: "percent" }).format(share)
}

/** Seconds as a person says them: 0.4 s, 21 s, 3 min 5 s, 2 h 10 min. */
export function duration(seconds) {
  const size = Math.abs(seconds)
  if (size < 9.95) return t("unit.seconds", { s: number(seconds, 1) })
  if (size < 99.5) return t("unit.seconds", { s: number(seconds) })
  if (size < 5970) return t("unit.minutes", { min: number(Math.floor(size / 60)), s: number(Math.floor(size % 60)) })
  return t("unit.hours", { h: number(Math.floor(size / 3600)), min: number(Math.floor((size % 3600) / 60)) })
}

/** Bytes as a person says them. */
export function bytes(size) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"]
  const power = size > 0 ? Math.min(4, Math.floor(Math.log(size) / Math.log(1024))) : 0
  const value = size / 1024 ** power
  const format = { style: "unit", unit: units[power], maximumFractionDigits: value < 10 && power ? 1 : 0 }
  return new Intl.NumberFormat(language(), format).format(value)
}

/** A moment (Unix time in seconds) as date and time. */
export function moment(time) {
  return new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(time * 1000)
}
