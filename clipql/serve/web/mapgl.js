/**
 * Points in their colours, by WebGL; on a plain canvas where there is none. What must stay true: both put a point at
 * `shift + place · scale` pixels, with places in [-1, 1] and y upwards.
 */

const VERTEX = `
attribute vec2 place; attribute vec4 colour;
uniform vec2 scale, shift, field; uniform mediump float size; varying vec4 tint;
void main() {
  vec2 at = shift + (place * 2.0 - 1.0) * vec2(scale.x, -scale.y);
  gl_Position = vec4(at / field * vec2(2.0, -2.0) + vec2(-1.0, 1.0), 0.0, 1.0);
  gl_PointSize = size; tint = colour;
}`;
const FRAGMENT = `
precision mediump float; varying vec4 tint; uniform float size;
void main() {
  float off = length(gl_PointCoord - 0.5) * size;
  float cover = clamp(size * 0.5 - off + 0.5, 0.0, 1.0);
  gl_FragColor = vec4(tint.rgb, 1.0) * tint.a * cover;
}`;
const QUICK = 20000; // points that a plain canvas draws while the map moves

/** A painter for a canvas: `kind`, `points(xy)`, `colours(rgba)`, `draw(view)`, `resize(width, height)`. */
export function makePainter(node) {
  const gl = node.getContext('webgl', { antialias: false, alpha: true, premultipliedAlpha: true });
  if (!gl) return byCanvas(node);
  if (gl.getProgramParameter(program(gl), gl.LINK_STATUS)) return byWebgl(node, gl);
  const other = node.cloneNode(); // a canvas has one context for good
  node.replaceWith(other);
  return byCanvas(other);
}

function program(gl) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  return made;
}

function byWebgl(node, gl) {
  let [made, uniforms, count, kept] = [null, null, 0, { xy: null, rgba: null }];
  let buffers = null;

  function begin() {
    made = program(gl);
    gl.useProgram(made);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    uniforms = Object.fromEntries(['scale', 'shift', 'field', 'size'].map((name) => [name, gl.getUniformLocation(made, name)]));
    buffers = { place: gl.createBuffer(), colour: gl.createBuffer() };
    if (kept.xy) fill('place', kept.xy, 2, gl.UNSIGNED_SHORT);
    if (kept.rgba) fill('colour', kept.rgba, 4, gl.UNSIGNED_BYTE);
  }

  function fill(name, data, width, type) {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    const at = gl.getAttribLocation(made, name);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, type, true, 0, 0);
  }

  node.addEventListener('webglcontextlost', (event) => event.preventDefault());
  node.addEventListener('webglcontextrestored', begin);
  begin();
  return {
    kind: 'webgl',
    points(xy) {
      kept.xy = xy;
      count = xy.length / 2;
      fill('place', xy, 2, gl.UNSIGNED_SHORT);
    },
    colours(rgba) {
      kept.rgba = rgba;
      fill('colour', rgba, 4, gl.UNSIGNED_BYTE);
    },
    resize(width, height) {
      [node.width, node.height] = [width, height];
    },
    draw({ scale, shift, size, width, height }) {
      gl.viewport(0, 0, node.width, node.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      if (!count || !kept.rgba || kept.rgba.length !== 4 * count) return;
      gl.uniform2f(uniforms.scale, scale.x, scale.y);
      gl.uniform2f(uniforms.shift, shift.x, shift.y);
      gl.uniform2f(uniforms.field, width, height);
      gl.uniform1f(uniforms.size, size * (node.width / width));
      gl.drawArrays(gl.POINTS, 0, count);
    },
  };
}

function byCanvas(node) {
  const pen = node.getContext('2d');
  let [xy, rgba, rest] = [new Uint16Array(), new Uint8Array(), 0];
  const order = new Map(); // a colour → the points that have it
  function paint({ scale, shift, size, width, height }, every) {
    pen.setTransform(node.width / width, 0, 0, node.height / height, 0, 0);
    pen.clearRect(0, 0, width, height);
    for (const [colour, members] of order) {
      pen.fillStyle = colour;
      for (let at = 0; at < members.length; at += every) {
        const i = members[at];
        const x = shift.x + ((xy[2 * i] / 65535) * 2 - 1) * scale.x;
        const y = shift.y - ((xy[2 * i + 1] / 65535) * 2 - 1) * scale.y;
        if (x > -size && y > -size && x < width + size && y < height + size) pen.fillRect(x - size / 2, y - size / 2, size, size);
      }
    }
  }
  return {
    kind: 'canvas',
    points: (given) => (xy = given),
    colours(given) {
      rgba = given;
      order.clear();
      for (let i = 0; i < rgba.length / 4; i++) {
        const colour = `rgb(${rgba[4 * i]} ${rgba[4 * i + 1]} ${rgba[4 * i + 2]} / ${(rgba[4 * i + 3] / 255).toFixed(2)})`;
        if (!order.has(colour)) order.set(colour, []);
        order.get(colour).push(i);
      }
    },
    resize(width, height) {
      [node.width, node.height] = [width, height];
    },
    draw(view) {
      clearTimeout(rest);
      if (rgba.length !== 2 * xy.length) return pen.clearRect(0, 0, node.width, node.height);
      const every = Math.max(1, Math.ceil(xy.length / 2 / QUICK));
      paint(view, every);
      if (every > 1) rest = setTimeout(() => paint(view, 1), 120);
    },
  };
}
