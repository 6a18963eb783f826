// A reader of .qlab files for browsers and Node, written from docs/format.md: every weight has the bits that quantlab gives it.
//
//     import { load } from "./qlab.mjs";
//     const { manifest, tensors } = await load(new Uint8Array(await (await fetch("model.qlab")).arrayBuffer()));
//     tensors["tok_emb.weight"];                // { shape: [V, C], data: Float32Array }
//
// It knows the kinds trellis_grid and raw. It checks magic, version and digest, and that time and memory are bounded by the length
// of the file, not each rule of the format: a file that was made to deceive may give wrong weights or an error of another kind.

const START = [0x89, 0x51, 0x4c, 0x41, 0x42, 0x0d, 0x0a, 0x1a, 1, 0]; // magic, version 1
const PROBLEM = "damaged, or no trellis artifact of version 1";
const PARITY_CHECKS = { 4: [0o5, 0o2], 8: [0o13, 0o4], 16: [0o23, 0o4], 32: [0o45, 0o10], 64: [0o103, 0o24], 256: [0o515, 0o362] };
const SIGNIFICANDS = [
  1099511627776n, 1008256608221n, 924575386327n, 847839367509n, 777472127994n, 712945084849n, 653773525390n, 599512966123n,
];
const STEPS = Array.from({ length: 64 }, (_, k) => Math.round(2 ** (23 + k / 64)));
const ESCAPE = -128;

export async function load(data) {
  const view = viewOf(data);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data.subarray(0, -16)));
  if (START.some((byte, i) => data[i] !== byte) || data.subarray(-16).some((byte, i) => byte !== digest[i]))
    throw new Error(PROBLEM);
  const count = view.getUint16(10, true);
  let at = 28 + count * 13;
  const take = (size) => data.subarray(at, (at += size));
  const manifest = JSON.parse(new TextDecoder().decode(await inflate(take(view.getUint32(12, true)), 2 ** 16 + 64 * data.length)));
  if (count !== 6 + ("files" in manifest)) throw new Error(PROBLEM); // files of a tokenizer are passed over
  checkBound(view, manifest);
  const sections = [];
  for (let line = 28; line < 28 + 6 * 13; line += 13) {
    const [stored, unpacked] = [view.getUint32(line + 1, true), view.getUint32(line + 5, true)];
    sections.push(await unpack(data[line], take(stored), unpacked));
  }
  const weights = readWeights(manifest, sections);
  const tensors = Object.create(null); // without __proto__, which is a name like any other
  let used = 0;
  for (const { name, kind, shape, dtype } of manifest.tensors) {
    if (kind !== "raw") tensors[name] = { shape, data: weights.next().value };
    else {
      const [values, bytes] = readRaw(sections[2].subarray(used), product(shape), dtype);
      tensors[name] = { shape, data: values };
      used += bytes;
    }
  }
  for (const [alias, name] of Object.entries(manifest.aliases ?? {})) tensors[alias] = tensors[name];
  for (const [name, shape] of Object.entries(manifest.shapes ?? {})) {
    const names = name in tensors ? [name] : Array.from({ length: product(shape.slice(0, -2)) }, (_, k) => `${name}.${k}`);
    tensors[name] = { shape, data: joined(names.map((part) => tensors[part].data)) };
    for (const part of names) if (part !== name) delete tensors[part];
  }
  return { manifest, tensors };
}

function joined(parts) {
  const data = new parts[0].constructor(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (data.set(part, at), at + part.length), 0);
  return data;
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const product = (shape) => shape.reduce((a, b) => a * b, 1);

// docs/format.md, "Bounds": what sections and codes may come to for a file of this length.
function checkBound(view, { tensors, lanes = 16 }) {
  const allowed = 64 * view.byteLength;
  let [bytes, codes, values, isSlow] = [0, 0, 0, lanes < 16 || lanes > 2048];
  for (let line = 28; line < 28 + 6 * 13; line += 13) {
    const [stored, unpacked] = [view.getUint32(line + 1, true), view.getUint32(line + 5, true)];
    bytes += unpacked;
    isSlow ||= view.getUint8(line) === 5 && unpacked > 16 * stored + 2 ** 20;
    isSlow ||= line === 28 + 4 * 13 && unpacked > 4 * view.byteLength + 2 ** 11; // frequency tables
  }
  for (const { kind, shape } of tensors) {
    if (!shape.every((n) => Number.isInteger(n) && n >= 0)) throw new Error("a shape is not of whole numbers");
    if (kind !== "raw") codes += Math.max(shape[0] * Math.max(shape[1], 64), shape[1], 64);
    else values += product(shape);
  }
  if (isSlow || bytes > allowed + 2 ** 22 || !(codes <= allowed + 2 ** 20) || !(values <= bytes))
    throw new Error("the file decodes to more than one of its length may");
}

async function inflate(bytes, most) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  let size = 0;
  for (let part; !(part = await reader.read()).done; size += part.value.length) {
    if (size > most) throw new Error("a deflate stream holds more than the file says");
    parts.push(part.value);
  }
  const out = new Uint8Array(size);
  for (let at = 0, part; (part = parts.shift()); at += part.length) out.set(part, at);
  return out;
}

async function unpack(codec, stored, size) {
  if (codec === 0 || size === 0) return stored;
  if (codec === 1) return inflate(stored, size);
  if (codec === 4) return lzma2(stored, size);
  if (codec === 5) return ransBytes(stored, size);
  throw new Error(`codec ${codec} is not for this reader`);
}

// Unquantized tensors: byte planes, then the dtype.

function readRaw(planes, count, dtype) {
  const kinds = {
    float16: [2, halves], bfloat16: [2, brainHalves], float32: [4, Float32Array], float64: [8, Float64Array], bool: [1, Uint8Array],
    int8: [1, Int8Array], uint8: [1, Uint8Array], int16: [2, Int16Array], int32: [4, Int32Array], int64: [8, BigInt64Array],
  };
  const [size, kind] = kinds[dtype];
  const bytes = new Uint8Array(count * size);
  for (let plane = 0; plane < size; plane++) for (let i = 0; i < count; i++) bytes[i * size + plane] = planes[plane * count + i];
  return [kind === halves || kind === brainHalves ? kind(new Uint16Array(bytes.buffer)) : new kind(bytes.buffer), bytes.length];
}

function halves(values) {
  return Float32Array.from(values, (bits) => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    return bits >> 15 ? -size : size;
  });
}

function brainHalves(values) {
  return new Float32Array(Uint32Array.from(values, (bits) => bits << 16).buffer);
}

// Weights: scale classes, symbols, codes along the trellis, steps.

function* readWeights(manifest, [, units, , shares, tables, stream]) {
  const entries = manifest.tensors.filter((entry) => entry.kind !== "raw");
  if (!entries.length) return;
  const [a, b] = sides(entries, units);
  const [r, s] = sides(entries, shares);
  const total = entries.reduce((sum, { shape }) => sum + product(shape), 0);
  const [classes, tableOf] = [new Uint8Array(total), new Uint16Array(total)];
  let n = 0;
  entries.forEach((entry, k) => {
    for (let i = 0; i < entry.shape[0]; i++)
      for (let j = 0; j < entry.shape[1]; j++, n++) {
        classes[n] = Math.min(83, Math.max(0, entry.classes + r[k][i] - a[k][i] + s[k][j] - b[k][j]));
        tableOf[n] = 28 * entry.tables + classes[n] - 4 * shiftOf(classes[n]);
      }
  });
  const symbols = readStream(stream, tableOf, slotsOf(tables), manifest.lanes, classes);
  n = 0;
  for (const [k, entry] of entries.entries()) {
    const size = product(entry.shape);
    yield dequantize(entry, symbols.subarray(n, n + size), classes.subarray(n, n + size), a[k], b[k]);
    n += size;
  }
}

const shiftOf = (cls) => Math.max(0, cls - 24) >> 2;

function sides(entries, section) {
  const values = new Int8Array(section.buffer, section.byteOffset, section.length);
  let at = 0;
  return [0, 1].map((side) => entries.map(({ shape }) => values.subarray(at, (at += shape[side]))));
}

function dequantize({ shape: [O, I], states, paths, level }, symbols, classes, a, b) {
  const weights = new Float32Array(O * I);
  const state = new Uint8Array(paths === "columns" ? I : 2 * (O + I) + 128); // of each path
  const pathOf = paths === "columns" ? (i, j) => j : (i, j) => 64 * ((i >> 5) + (j >> 5)) + (i & 31) + (j & 31);
  const [h0, h1] = PARITY_CHECKS[states] ?? [0, 0];
  for (let i = 0, n = 0; i < O; i++)
    for (let j = 0; j < I; j++, n++) {
      const v = symbols[n];
      const [path, isOnPath] = [pathOf(i, j), states > 1 && classes[n] >= 9];
      const q = state[path];
      const code = states === 1 ? v : isOnPath && q & 1 ? 1 - 2 * v : 2 * v;
      if (isOnPath) state[path] = (q ^ ((q & 1) * h0) ^ ((v & 1) * h1)) >> 1;
      const m = level + 16 * (a[i] + b[j]);
      const step = Math.fround(STEPS[m & 63] * 2 ** (Math.floor(m / 64) - 23)); // below 2^-126 a float32 has fewer digits
      // the product of two float32 is exact in a double, so storing it rounds once, as float32 arithmetic does
      weights[n] = (code - (isOnPath ? 0.5 : 0)) * step;
    }
  return weights;
}

// The code stream and its tables.

function readStream(stream, tableOf, slots, lanes, classes) {
  const view = viewOf(stream);
  const [escapeCount, rawBytes] = [view.getUint32(0, true), view.getUint32(4, true)];
  const starts = [0];
  for (let k = 0; k < ((lanes + 31) >> 5) - 1; k++) starts.push(starts[k] + view.getUint32(8 + 4 * k, true));
  let escapeAt = 4 + 4 * starts.length;
  const rawAt = escapeAt + 2 * escapeCount;
  const found = readSymbols(tableOf, slots, lanes, view, rawAt + rawBytes, starts);
  const symbols = Int16Array.from(found);
  for (let n = 0, bit = 8 * rawAt; n < symbols.length; n++) {
    if (found[n] === ESCAPE) (symbols[n] = view.getInt16(escapeAt, true)), (escapeAt += 2);
    for (let k = shiftOf(classes[n]); k > 0; k--, bit++) symbols[n] = 2 * symbols[n] + ((stream[bit >> 3] >> (7 - (bit & 7))) & 1);
  }
  return symbols;
}

function readSymbols(tableOf, { frequency, symbol, place }, lanes, view, at, starts) {
  const states = Float64Array.from({ length: lanes }, (_, lane) => view.getUint32(at + 4 * lane, true));
  const next = starts.map((start) => at + 4 * lanes + 2 * start);
  const symbols = new Int8Array(tableOf.length);
  for (let first = 0; first < symbols.length; first += lanes)
    for (let lane = 0; lane < Math.min(lanes, symbols.length - first); lane++) {
      const slot = tableOf[first + lane] * 4096 + (states[lane] % 4096);
      let state = frequency[slot] * Math.floor(states[lane] / 4096) + place[slot];
      if (state < 65536) (state = state * 65536 + view.getUint16(next[lane >> 5], true)), (next[lane >> 5] += 2);
      states[lane] = state;
      symbols[first + lane] = symbol[slot];
    }
  return symbols;
}

function slotsOf(raw) {
  const count = 28 * raw[0];
  const heads = [0, 1, 2].map((part) => {
    let sum = 0;
    return Array.from(raw.subarray(1 + part * count, 1 + (part + 1) * count), (difference) => (sum = (sum + difference) & 255));
  });
  const latest = new Uint8Array(256).fill(96);
  const slots = newSlots(count);
  let at = 1 + 3 * count;
  for (let table = 0; table < count; table++) {
    const low = (heads[0][table] << 24) >> 24;
    const logs = [heads[2][table]];
    for (let place = low + 128; place < low + 128 + heads[1][table]; place++) {
      latest[place] += raw[at++]; // modulo 256
      logs.push(latest[place]);
    }
    fillSlots(slots, table, low, logs);
  }
  return slots;
}

const newSlots = (tables) => ({
  frequency: new Uint16Array(4096 * tables), symbol: new Int8Array(4096 * tables), place: new Uint16Array(4096 * tables),
});

function fillSlots(slots, table, low, logs) {
  let at = 4096 * table;
  frequencies(logs).forEach((count, i) => {
    for (let k = 0; k < count; k++, at++) {
      slots.frequency[at] = count;
      slots.symbol[at] = i === 0 ? ESCAPE : low + i - 1;
      slots.place[at] = k;
    }
  });
}

function frequencies(logs) {
  const weights = logs.map((x) => SIGNIFICANDS[x & 7] >> BigInt(x >> 3)); // BigInt: 8192 w + T is beyond 2^53
  const total = weights.reduce((a, b) => a + b);
  const counts = weights.map((w) => Math.max(1, Number((8192n * w + total) / (2n * total))));
  for (let excess; (excess = counts.reduce((a, b) => a + b) - 4096) !== 0; )
    counts[counts.indexOf(Math.max(...counts))] -= excess > 0 ? 1 : excess;
  return counts;
}

function ransBytes(stored, size) {
  const [first, n, packing] = stored;
  const [shift, width] = [packing >> 4, packing & 15];
  const logs = [];
  let bit = 24;
  for (let i = 0; i <= n; i++) {
    let log = 0;
    for (let k = 0; k < width; k++, bit++) log = 2 * log + ((stored[bit >> 3] >> (7 - (bit & 7))) & 1);
    logs.push(log << shift);
  }
  const lanes = Math.min(16, 2 ** Math.floor(Math.log2(Math.max(1, Math.floor(size / 2048)))));
  const slots = newSlots(1);
  fillSlots(slots, 0, -127, logs);
  const symbols = readSymbols(new Uint16Array(size), slots, lanes, viewOf(stored), (bit + 7) >> 3, [0]);
  let escapeAt = stored.length - symbols.reduce((count, symbol) => count + (symbol === ESCAPE), 0);
  return Uint8Array.from(symbols, (symbol) => (symbol === ESCAPE ? stored[escapeAt++] : first + symbol + 127));
}

// LZMA2, which browsers do not have.

function lzma2(input, size) {
  const out = new Uint8Array(size);
  const [MATCH, REP, REP0, REP1, REP2, LONG, SLOT, SPECIAL, ALIGN, LENGTH, REP_LENGTH, LITERAL] = [
    0, 192, 204, 216, 228, 240, 432, 688, 804, 820, 1334, 1848,
  ];
  let at = 0, done = 0, range = 0, code = 0, lc = 0, lp = 0, pb = 0, state = 0, distances = [0, 0, 0, 0], odds;

  const fill = () => {
    if (range < 2 ** 24) (range *= 256), (code = code * 256 + input[at++]);
  };
  const bit = (i) => {
    fill();
    const bound = Math.floor(range / 2048) * odds[i];
    const value = code < bound ? 0 : 1;
    if (value) (range -= bound), (code -= bound), (odds[i] -= odds[i] >> 5);
    else (range = bound), (odds[i] += (2048 - odds[i]) >> 5);
    return value;
  };
  const tree = (base, bits) => {
    let m = 1;
    for (let i = 0; i < bits; i++) m = 2 * m + bit(base + m);
    return m - 2 ** bits;
  };
  const reversed = (base, bits) => {
    let [m, value] = [1, 0];
    for (let i = 0; i < bits; i++) {
      const one = bit(base + m);
      m = 2 * m + one;
      value += one * 2 ** i;
    }
    return value;
  };
  const direct = (bits) => {
    let value = 0;
    for (let i = 0; i < bits; i++) {
      fill();
      range = Math.floor(range / 2);
      const one = code >= range ? 1 : 0;
      code -= one * range;
      value = 2 * value + one;
    }
    return value;
  };
  const length = (base, position) => {
    if (!bit(base)) return 2 + tree(base + 2 + 8 * position, 3);
    return bit(base + 1) ? 18 + tree(base + 258, 8) : 10 + tree(base + 130 + 8 * position, 3);
  };
  const distance = (matched) => {
    const slot = tree(SLOT + 64 * Math.min(matched - 2, 3), 6);
    if (slot < 4) return slot;
    const bits = (slot >> 1) - 1;
    const base = (2 | (slot & 1)) * 2 ** bits;
    return base + (slot < 14 ? reversed(SPECIAL + base - slot, bits) : direct(bits - 4) * 16 + reversed(ALIGN, 4));
  };
  const literal = () => {
    const context = ((done & (2 ** lp - 1)) << lc) + ((done ? out[done - 1] : 0) >> (8 - lc));
    const base = LITERAL + 0x300 * context;
    let m = 1;
    if (state >= 7)
      for (let byte = out[done - distances[0] - 1], same = true; m < 256 && same; byte <<= 1) {
        const expected = (byte >> 7) & 1;
        const found = bit(base + ((1 + expected) << 8) + m);
        m = 2 * m + found;
        same = found === expected;
      }
    while (m < 256) m = 2 * m + bit(base + m);
    out[done++] = m;
    state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
  };
  const copy = (count) => {
    if (distances[0] >= done) throw new Error("damaged LZMA2 stream");
    for (; count > 0; count--, done++) out[done] = out[done - distances[0] - 1];
  };
  const match = (position) => {
    if (!bit(REP + state)) {
      const count = length(LENGTH, position);
      distances = [distance(count), ...distances.slice(0, 3)];
      state = state < 7 ? 7 : 10;
      return copy(count);
    }
    if (!bit(REP0 + state)) {
      if (!bit(LONG + 16 * state + position)) {
        state = state < 7 ? 9 : 11;
        return copy(1);
      }
    } else {
      const which = bit(REP1 + state) ? 2 + bit(REP2 + state) : 1;
      distances.unshift(...distances.splice(which, 1));
    }
    const count = length(REP_LENGTH, position);
    state = state < 7 ? 8 : 11;
    copy(count);
  };
  for (let control; (control = input[at++]); ) {
    const low = 256 * input[at] + input[at + 1] + 1;
    at += 2;
    if (control < 3) {
      out.set(input.subarray(at, at + low), done);
      [at, done] = [at + low, done + low];
      continue;
    }
    at += 2; // length of the chunk as stored
    const reset = (control >> 5) & 3;
    if (reset >= 2) [lc, lp, pb] = [input[at] % 9, Math.floor(input[at] / 9) % 5, Math.floor(input[at++] / 45)];
    if (reset) [state, distances, odds] = [0, [0, 0, 0, 0], new Uint16Array(LITERAL + (0x300 << (lc + lp))).fill(1024)];
    [range, code] = [2 ** 32 - 1, viewOf(input).getUint32(at + 1)];
    at += 5;
    const end = done + (control & 31) * 65536 + low;
    if (end > size) throw new Error("damaged LZMA2 stream");
    while (done < end) {
      const position = done & (2 ** pb - 1);
      if (bit(MATCH + 16 * state + position)) match(position);
      else literal();
    }
  }
  return out;
}
