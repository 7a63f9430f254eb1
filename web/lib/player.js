// Plays an entry's preview frame by frame on a canvas, with masks over it if wanted.

import { h } from "./dom.js"
import { framesAddress } from "./routes.js"

const FRAME_MS = 125
const playing = new Set()
let timer = 0

function tick() {
  for (const player of playing) {
    if (player.canvas.offsetParent !== null) player.advance()
  }
}

function follow(player) {
  playing.add(player)
  timer ||= setInterval(tick, FRAME_MS)
}

function leave(player) {
  playing.delete(player)
  if (!playing.size) timer = void clearInterval(timer)
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches

/** Masks as the server packs them → (frame, cell) → 0 nothing, 1 seen, 2 recomputed. */
function cellsOf(masks) {
  const bits = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const [edit, visible] = [bits(masks.edit), bits(masks.visible)]
  const [, height, width] = masks.grid
  return (frame, cell) => {
    const at = frame * height * width + cell
    const byte = at >> 3
    const bit = 0x80 >> (at & 7)
    return edit[byte] & bit ? 2 : visible[byte] & bit ? 1 : 0
  }
}

/** The preview of an entry. shape: its latent's, which gives the frames' form; label: what a screen reader says. */
export class Player {
  constructor(cache, id, shape, label, masks = null) {
    this.canvas = h("canvas", { class: "chorus-player", role: "img", "aria-label": label, width: 1, height: 1 })
    this.shape = shape
    this.masks = masks
    this.cells = masks && cellsOf(masks)
    this.showMasks = Boolean(masks)
    this.frame = 0
    this.frames = 0
    this.ready = this.load(framesAddress(cache, id))
  }

  async load(address) {
    const picture = new Image()
    picture.src = address
    try {
      await picture.decode()
    } catch {
      this.canvas.classList.add("chorus-missing")
      return
    }
    const [height, width] = this.shape.slice(-2)
    this.picture = picture
    this.frames = Math.max(1, Math.round(picture.naturalHeight / (picture.naturalWidth * (height / width))))
    this.canvas.width = picture.naturalWidth
    this.canvas.height = Math.round(picture.naturalHeight / this.frames)
    this.draw()
    if (!still()) follow(this)
    else {
      this.canvas.addEventListener("pointerenter", () => follow(this))
      this.canvas.addEventListener("pointerleave", () => leave(this))
    }
  }

  /** To be called when the canvas is not needed any more. */
  stop() {
    leave(this)
  }

  advance() {
    this.frame = (this.frame + 1) % this.frames
    this.draw()
  }

  draw() {
    if (!this.picture) return
    const { width, height } = this.canvas
    const pen = this.canvas.getContext("2d")
    pen.drawImage(this.picture, 0, this.frame * height, width, height, 0, 0, width, height)
    if (this.masks && this.showMasks) this.drawMasks(pen, width, height)
  }

  drawMasks(pen, width, height) {
    const [count, rows, columns] = this.masks.grid
    const frame = Math.min(count - 1, Math.floor((this.frame * count) / this.frames))
    const edge = (index, of, size) => Math.round((index * size) / of)
    for (let cell = 0; cell < rows * columns; cell++) {
      const kind = this.cells(frame, cell)
      if (kind === 1) continue
      pen.fillStyle = kind === 2 ? "rgba(255, 64, 38, 0.45)" : "rgba(0, 0, 0, 0.6)"
      const [column, row] = [cell % columns, Math.floor(cell / columns)]
      const [x, y] = [edge(column, columns, width), edge(row, rows, height)]
      pen.fillRect(x, y, edge(column + 1, columns, width) - x, edge(row + 1, rows, height) - y)
    }
  }
}
