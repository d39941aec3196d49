// SPDX-License-Identifier: Apache-2.0
// Draws faces of 32x32 pixels in colour with DiceBear's packages, as a zip of PNGs with a folder for each style.
//
//     node draw.mjs ../../datasets/avatars-32.zip     (`make avatars` installs the packages first)
//
// A face is decided by its style and its number, so that a set of more faces contains those of a smaller one. The zip is written
// in one go, after the pixels have been compared with the digest below: pixels that differ would be another data set. Entries are
// not compressed and have a fixed date. The PNGs are resvg's, so that the bytes of the zip do not depend on the version of Node.js.
import { createHash } from "node:crypto";
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { parseArgs } from "node:util";

// Whole faces only: the "neutral" styles repeat these without hair and head. LICENSES.md has the author and licence of each.
const STYLES = [
  "adventurer", "big-ears", "big-smile", "croodles", "dylan", "fun-emoji", "lorelei", "micah",
  "miniavs", "notionists", "open-peeps", "personas", "pixel-art", "thumbs", "toon-head",
];
const EACH = 2400; // faces of a style
const MOST = 4369; // a zip without extensions has at most 65,535 files
const SIDE = 32; // pixels
// sha256 of the RGB values of EACH faces of each style, rows from the top, in the order of their names in the zip
const PIXELS = "9a650e254def8442990d0a7de7d4057dab9e387452f05fb360ac8ea433e243b0";

class Problem extends Error {}

// --- a face ---------------------------------------------------------------------------------------------

/** The renderer, and a function from a style and DiceBear's options to an SVG. Throws Problem if the packages are not installed. */
async function load() {
  try {
    const [{ createAvatar }, collection, { Resvg }] = await Promise.all(
      ["@dicebear/core", "@dicebear/collection", "@resvg/resvg-js"].map((name) => import(name)),
    );
    const camel = (style) => style.replace(/-(.)/g, (_, letter) => letter.toUpperCase());
    return { Resvg, svg: (style, options) => createAvatar(collection[camel(style)], options).toString() };
  } catch (error) {
    const why = error.message.split("\n")[0];
    throw new Problem(`the packages of data/avatars cannot be loaded (${why}); type \`npm ci --prefix data/avatars\``);
  }
}

/** The RGB values (SIDE * SIDE * 3 bytes, rows from the top) and the PNG of face `index` of a style. */
function face({ Resvg, svg }, style, index) {
  // DiceBear's generator of random numbers draws alike from seeds that are alike, such as numbers in a row; digests are not.
  const digest = createHash("sha256").update(`${style} ${index}`).digest();
  const background = [...digest.subarray(0, 3)].map((byte) => (160 + (byte % 96)).toString(16)).join("");
  const drawing = svg(style, {
    seed: digest.toString("hex"),
    backgroundColor: [background],
    backgroundType: ["solid"],
  });
  const image = new Resvg(drawing, {
    fitTo: { mode: "width", value: SIDE },
    font: { loadSystemFonts: false },
  }).render();
  return { name: `${style}/${String(index).padStart(5, "0")}.png`, pixels: opaque(image, style), png: image.asPng() };
}

function opaque(image, style) {
  const { width, height, pixels } = image; // RGBA
  const rgb = Buffer.alloc(SIDE * SIDE * 3);
  if (width !== SIDE || height !== SIDE || pixels.some((value, place) => place % 4 === 3 && value !== 255)) {
    throw new Problem(`a face in the style ${style} is not ${SIDE}x${SIDE} and opaque; report this with its style`);
  }
  for (let place = 0; place < SIDE * SIDE; place++) rgb.set(pixels.subarray(4 * place, 4 * place + 3), 3 * place);
  return rgb;
}

// --- a zip ----------------------------------------------------------------------------------------------

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = -1;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/** A little-endian record of [value, bytes] pairs. */
function record(...fields) {
  const bytes = Buffer.alloc(fields.reduce((sum, [, size]) => sum + size, 0));
  let place = 0;
  for (const [value, size] of fields) place = bytes.writeUIntLE(value, place, size);
  return bytes;
}

/** What both headers of a stored file have: version 1.0, no flags, no compression, midnight of 1980-01-01, digest and sizes. */
function common({ name, png }) {
  const [size, digest] = [png.length, crc32(png)];
  return record([10, 2], [0, 2], [0, 2], [0, 2], [0x21, 2], [digest, 4], [size, 4], [size, 4], [name.length, 2], [0, 2]);
}

/** The parts of a zip of {name, png} files, in this order, without compression (PKWARE's APPNOTE, 4.3). */
function zip(files) {
  const parts = [], directory = [];
  let place = 0;
  for (const file of files) {
    const name = Buffer.from(file.name), head = common(file);
    const entry = [record([0x04034b50, 4]), head, name, file.png];
    directory.push(record([0x02014b50, 4], [10, 2]), head, record([0, 2], [0, 2], [0, 2], [0, 4], [place, 4]), name);
    parts.push(...entry);
    place += entry.reduce((sum, part) => sum + part.length, 0);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [place, 4], [0, 2]);
  return Buffer.concat([...parts, ...directory, end]);
}

// --- the command ----------------------------------------------------------------------------------------

const USAGE = "expected: node draw.mjs FILE.zip [--each NUMBER] [--digest SHA256]";

function options() {
  let found;
  try {
    found = parseArgs({ allowPositionals: true, options: { each: { type: "string" }, digest: { type: "string" } } });
  } catch (error) {
    throw new Problem(`${error.message.split("\n")[0]}; ${USAGE}`);
  }
  const { positionals, values } = found;
  const each = Number(values.each ?? EACH);
  if (positionals.length !== 1) throw new Problem(`found ${positionals.length} names of files; ${USAGE}`);
  if (!Number.isInteger(each) || each < 1 || each > MOST) {
    throw new Problem(`--each is ${values.each}; expected a whole number from 1 to ${MOST}, the number of faces of each style`);
  }
  return { out: positionals[0], each, digest: values.digest ?? (each === EACH ? PIXELS : null) };
}

function drawAll(tools, each) {
  const files = [], pixels = createHash("sha256");
  for (const style of STYLES) {
    const began = performance.now();
    for (let index = 0; index < each; index++) {
      const drawn = face(tools, style, index);
      pixels.update(drawn.pixels);
      files.push({ name: drawn.name, png: drawn.png });
    }
    console.log(`${style.padEnd(12)} ${each} faces in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  return { files, digest: pixels.digest("hex") };
}

function write(out, bytes) {
  const part = `${out}.part`;
  try {
    mkdirSync(dirname(out), { recursive: true });
    writeFileSync(part, bytes);
    renameSync(part, out);
  } catch (error) {
    rmSync(part, { force: true });
    throw new Problem(`${out} cannot be written (${error.code ?? error.message}); free the disk or name another file`);
  }
}

async function main() {
  const { out, each, digest } = options();
  const drawn = drawAll(await load(), each);
  if (digest !== null && drawn.digest !== digest) {
    throw new Problem(
      `the pixels have sha256 ${drawn.digest}; expected ${digest}. Nothing was written; type \`npm ci --prefix data/avatars\` ` +
        "for the packages of the lock file, and if the digest stays, draw on x86-64 under Linux, where it was noted, and copy the zip",
    );
  }
  write(out, zip(drawn.files));
  const checked = digest === null ? "not compared with a known digest" : "as expected";
  console.log(`${out}: ${drawn.files.length} faces in ${STYLES.length} styles, pixels sha256 ${drawn.digest}, ${checked}`);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`avatars: ${error.message}`);
  process.exitCode = 2;
}
