// A scene of Gaussians in WebGL 2: each is a quad around its projection (EWA splatting), drawn back to front.
"use strict";

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D rows, harmonics;
uniform mat3 turn;          // world to camera: x right, y down, z forward
uniform vec3 shift, eye;
uniform vec4 lens, slopes;  // fx fy cx cy in pixels; bounds of x/z and y/z where the Jacobian is taken
uniform vec2 size;
uniform float nearPlane, harmonicScale;
uniform int degree, antialiased;
in uint row;
out vec3 color;
out float opacity;
out vec2 offset;

const uint WIDTH = 4096u;

uvec4 texel(usampler2D source, uint index) {
  return texelFetch(source, ivec2(index % WIDTH, index / WIDTH), 0);
}

float signedByte(uvec4 words, int place) {
  uint word = words[place / 4];
  return float(int(word << uint(24 - 8 * (place % 4))) >> 24) / 127.0;
}

vec3 coefficient(int band) {
  vec3 found;
  for (int channel = 0; channel < 3; channel++) {
    int place = 3 * band + channel;
    uint texels = uint((3 * ((degree + 1) * (degree + 1) - 1) + 15) / 16);
    found[channel] = signedByte(texel(harmonics, row * texels + uint(place / 16)), place % 16);
  }
  return harmonicScale * found;
}

vec3 viewColor(vec3 base, vec3 d) {
  vec3 sum = 0.28209479177387814 * base + 0.5;
  if (degree < 1) return max(sum, 0.0);
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  sum += 0.4886025119029199 * (-y * coefficient(0) + z * coefficient(1) - x * coefficient(2));
  if (degree > 1) {
    sum += 1.0925484305920792 * (x * y * coefficient(3) - y * z * coefficient(4) - x * z * coefficient(6));
    sum += 0.31539156525252005 * (2.0 * zz - xx - yy) * coefficient(5);
    sum += 0.5462742152960396 * (xx - yy) * coefficient(7);
  }
  if (degree > 2) {
    sum += -0.5900435899266435 * (y * (3.0 * xx - yy) * coefficient(8) + x * (xx - 3.0 * yy) * coefficient(14));
    sum += 2.890611442640554 * x * y * z * coefficient(9) + 1.445305721320277 * z * (xx - yy) * coefficient(13);
    sum += -0.4570457994644658 * (4.0 * zz - xx - yy) * (y * coefficient(10) + x * coefficient(12));
    sum += 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * coefficient(11);
  }
  return max(sum, 0.0);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // outside, unless it is seen
  uvec4 first = texel(rows, 2u * row), second = texel(rows, 2u * row + 1u);
  vec3 mean = uintBitsToFloat(first.xyz);
  vec3 place = turn * mean + shift;
  if (place.z <= nearPlane) return;
  vec2 redGreen = unpackHalf2x16(first.w), blueOpacity = unpackHalf2x16(second.x), sizes = unpackHalf2x16(second.y);
  vec3 scale = exp(vec3(sizes, unpackHalf2x16(second.z).x));
  vec3 q = vec3(unpackSnorm2x16(second.z).y, unpackSnorm2x16(second.w));
  float w = sqrt(max(0.0, 1.0 - dot(q, q)));
  mat3 axes = mat3(
    1.0 - 2.0 * (q.y * q.y + q.z * q.z), 2.0 * (q.x * q.y + w * q.z), 2.0 * (q.x * q.z - w * q.y),
    2.0 * (q.x * q.y - w * q.z), 1.0 - 2.0 * (q.x * q.x + q.z * q.z), 2.0 * (q.y * q.z + w * q.x),
    2.0 * (q.x * q.z + w * q.y), 2.0 * (q.y * q.z - w * q.x), 1.0 - 2.0 * (q.x * q.x + q.y * q.y));
  mat3 spread = turn * axes * mat3(scale.x, 0.0, 0.0, 0.0, scale.y, 0.0, 0.0, 0.0, scale.z);
  vec2 slope = clamp(place.xy / place.z, slopes.xz, slopes.yw);
  vec3 across = lens.x / place.z * (vec3(1.0, 0.0, -slope.x) * spread);
  vec3 down = lens.y / place.z * (vec3(0.0, 1.0, -slope.y) * spread);
  float xx = dot(across, across), xy = dot(across, down), yy = dot(down, down);
  vec3 normal = cross(across, down);
  float before = dot(normal, normal), after = before + 0.3 * (xx + yy) + 0.09;
  xx += 0.3;
  yy += 0.3;
  opacity = blueOpacity.y * (antialiased == 1 ? sqrt(before / after) : 1.0);
  if (opacity < 1.0 / 255.0) return;
  float middle = 0.5 * (xx + yy), apart = length(vec2(0.5 * (xx - yy), xy)), longest = middle + apart;
  vec2 along = abs(xy) > 1e-6 * longest ? normalize(vec2(xy, longest - xx)) : (xx >= yy ? vec2(1, 0) : vec2(0, 1));
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  offset = corner * sqrt(2.0 * log(255.0 * opacity));
  vec2 pixel = lens.xy * place.xy / place.z + lens.zw;
  pixel += offset.x * sqrt(longest) * along + offset.y * sqrt(after / longest) * vec2(-along.y, along.x);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
  color = viewColor(vec3(redGreen, blueOpacity.x), normalize(mean - eye));
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec3 color;
in float opacity;
in vec2 offset;
out vec4 result;
void main() {
  float alpha = min(0.999, opacity * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color * alpha, alpha);
}`;

// Runs in a worker: rows from the farthest to the nearest, those before the near plane left out.
function sortRows() {
  let positions, keys, order, spare;
  onmessage = ({data}) => {
    if (data.positions) {
      positions = data.positions;
      const count = positions.length / 3;
      keys = new Uint32Array(count);
      order = new Uint32Array(count);
      spare = new Uint32Array(count);
      return;
    }
    const {forward, shift, nearPlane} = data, depths = new Float32Array(keys.buffer);
    let seen = 0;
    for (let row = 0, at = 0; row < depths.length; row++, at += 3) {
      const depth = forward[0] * positions[at] + forward[1] * positions[at + 1] + forward[2] * positions[at + 2] + shift;
      depths[row] = depth;
      if (depth > nearPlane) order[seen++] = row;
    }
    // The bits of positive floats are in the order of their values.
    let source = order, target = spare;
    for (const by of [0, 16]) {
      const starts = new Uint32Array(65537);
      for (let index = 0; index < seen; index++) starts[65536 - ((keys[source[index]] >>> by) & 65535)]++;
      for (let bucket = 1; bucket <= 65536; bucket++) starts[bucket] += starts[bucket - 1];
      for (let index = 0; index < seen; index++) {
        const row = source[index];
        target[starts[65535 - ((keys[row] >>> by) & 65535)]++] = row;
      }
      [source, target] = [target, source];
    }
    const found = source.slice(0, seen);
    postMessage(found, [found.buffer]);
  };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const add = (a, b, times = 1) => a.map((value, axis) => value + times * b[axis]);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

// Rodrigues: a vector turned by an angle about a unit axis.
function turned(vector, axis, angle) {
  const cosine = Math.cos(angle), sine = Math.sin(angle), sideways = cross(axis, vector);
  const along = dot(axis, vector) * (1 - cosine);
  return vector.map((value, index) => value * cosine + sideways[index] * sine + axis[index] * along);
}

class View {
  constructor(start) {
    this.start = start;
    this.up = start.up;
    this.reset();
  }

  reset() {
    [this.right, this.down, this.forward] = [0, 3, 6].map(at => this.start.turn.slice(at, at + 3));
    this.eye = this.start.eye.slice();
    this.target = add(this.eye, this.forward, this.start.distance);
  }

  get distance() {
    return dot(add(this.target, this.eye, -1), this.forward);
  }

  turnAbout(axis, angle) {
    for (const name of ["right", "down", "forward"]) this[name] = turned(this[name], axis, angle);
    this.eye = add(this.target, turned(add(this.eye, this.target, -1), axis, angle));
  }

  orbit(across, upwards) {
    this.turnAbout(this.up, -across);
    // Not over the poles: there left and right would change places.
    const next = turned(this.forward, this.right, upwards), height = Math.abs(dot(next, this.up));
    if (height < 0.985 || height < Math.abs(dot(this.forward, this.up))) this.turnAbout(this.right, upwards);
  }

  pan(across, downwards) {
    const move = add(this.right.map(value => -value * across), this.down, -downwards);
    this.eye = add(this.eye, move);
    this.target = add(this.target, move);
  }

  zoom(factor) {
    this.eye = add(this.target, add(this.eye, this.target, -1), Math.min(Math.max(factor, 0.2), 5));
  }

  lens(width, height) {
    const start = this.start, scale = Math.min(width / start.width, height / start.height);
    return [
      scale * start.fx, scale * start.fy,
      width / 2 + scale * (start.cx - start.width / 2), height / 2 + scale * (start.cy - start.height / 2),
    ];
  }
}

async function unpacked(id) {
  const text = document.getElementById(id).textContent.trim(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

class Renderer {
  constructor(canvas, scene, rows, harmonics) {
    this.canvas = canvas;
    this.scene = scene;
    this.seen = 0;
    const gl = this.gl = canvas.getContext("webgl2", {antialias: false, alpha: false, depth: false});
    if (!gl) throw new Error("this browser shows no WebGL 2");
    const program = this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    for (const [unit, name, words] of [[0, "rows", rows], [1, "harmonics", harmonics]]) {
      this.texture(unit, new Uint32Array(words));
      gl.uniform1i(this.place(name), unit);
    }
    const row = gl.getAttribLocation(program, "row");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(row);
    gl.vertexAttribIPointer(row, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(row, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(...scene.background, 1);
  }

  place(name) {
    return this.gl.getUniformLocation(this.program, name);
  }

  // Texels of four words, 4096 in a line; the last line is filled up.
  texture(unit, words) {
    const gl = this.gl, lines = Math.max(1, Math.ceil(words.length / 16384)), filled = new Uint32Array(16384 * lines);
    filled.set(words);
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32UI, 4096, lines, 0, gl.RGBA_INTEGER, gl.UNSIGNED_INT, filled);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
  }

  order(rows) {
    this.seen = rows.length;
    this.gl.bufferData(this.gl.ARRAY_BUFFER, rows, this.gl.DYNAMIC_DRAW);
  }

  draw(view) {
    const gl = this.gl, {width, height} = this.canvas, scene = this.scene, lens = view.lens(width, height);
    const [fx, fy, cx, cy] = lens, across = 0.15 * width / fx, down = 0.15 * height / fy;
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const rows = [view.right, view.down, view.forward];
    gl.uniformMatrix3fv(this.place("turn"), true, rows.flat());
    gl.uniform3fv(this.place("shift"), rows.map(axis => -dot(axis, view.eye)));
    gl.uniform3fv(this.place("eye"), view.eye);
    gl.uniform4fv(this.place("lens"), lens);
    gl.uniform4f(this.place("slopes"), -cx / fx - across, (width - cx) / fx + across, -cy / fy - down, (height - cy) / fy + down);
    gl.uniform2f(this.place("size"), width, height);
    gl.uniform1f(this.place("nearPlane"), scene.near);
    gl.uniform1f(this.place("harmonicScale"), scene.harmonicScale);
    gl.uniform1i(this.place("degree"), scene.degree);
    gl.uniform1i(this.place("antialiased"), scene.antialiased ? 1 : 0);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.seen);
  }
}

// Mouse, fingers, wheel and keys move the view; `changed` is called after each.
function listen(canvas, view, changed) {
  const fingers = new Map();
  const perPixel = () => view.distance / view.lens(canvas.clientWidth, canvas.clientHeight)[0];
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y)};
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  });
  canvas.addEventListener("pointermove", event => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? spread() : null, x = event.clientX - last.x, y = event.clientY - last.y;
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    if (before) {
      const after = spread();
      view.pan((after.x - before.x) * perPixel(), (after.y - before.y) * perPixel());
      view.zoom(before.apart / Math.max(after.apart, 1));
    } else if (event.buttons & 2 || event.shiftKey) view.pan(x * perPixel(), y * perPixel());
    else view.orbit(-x * 0.006, -y * 0.006);
    changed();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => fingers.delete(event.pointerId));
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    view.zoom(Math.exp(0.001 * event.deltaY * (event.deltaMode ? 30 : 1)));
    changed();
  }, {passive: false});
  const keys = {
    ArrowLeft: () => view.orbit(-0.1, 0), ArrowRight: () => view.orbit(0.1, 0),
    ArrowUp: () => view.orbit(0, 0.1), ArrowDown: () => view.orbit(0, -0.1),
    "+": () => view.zoom(0.9), "-": () => view.zoom(1.1), Home: () => view.reset(), r: () => view.reset(),
  };
  addEventListener("keydown", event => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
    changed();
  });
}

async function show() {
  const scene = JSON.parse(document.getElementById("about").textContent), canvas = document.querySelector("canvas");
  const [rows, harmonics] = await Promise.all([unpacked("rows"), unpacked("harmonics")]);
  const renderer = new Renderer(canvas, scene, rows, harmonics), view = new View(scene.camera);
  const worker = new Worker(URL.createObjectURL(new Blob([`(${sortRows})()`], {type: "text/javascript"})));
  const numbers = new Float32Array(rows), positions = new Float32Array(3 * scene.count);
  for (let row = 0; row < scene.count; row++) positions.set(numbers.subarray(8 * row, 8 * row + 3), 3 * row);
  worker.postMessage({positions}, [positions.buffer]);
  let isSorting = false, isStale = true, isWaiting = false;
  const sort = () => {
    if (isSorting || !isStale) return;
    [isSorting, isStale] = [true, false];
    worker.postMessage({forward: view.forward, shift: -dot(view.forward, view.eye), nearPlane: scene.near});
  };
  const frame = () => {
    isWaiting = false;
    renderer.draw(view);
    sort();
    if (renderer.seen || !isSorting) document.documentElement.dataset.ready = "yes";
  };
  const draw = () => {
    if (!isWaiting) requestAnimationFrame(frame);
    isWaiting = true;
  };
  const changed = () => {
    isStale = true;
    draw();
  };
  worker.onmessage = ({data}) => {
    isSorting = false;
    renderer.order(data);
    draw();
  };
  new ResizeObserver(() => {
    const ratio = Math.min(devicePixelRatio, 2);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    draw();
  }).observe(canvas);
  canvas.addEventListener("webglcontextlost", () => location.reload());
  listen(canvas, view, changed);
  sort();
}

show().catch(error => {
  const note = document.querySelector("footer");
  note.textContent = `This page cannot show its scene: ${error.message}.`;
  document.documentElement.dataset.ready = "failed";
});
