// The teleop page. The arm moves only while something is held: what is held is said again and
// again, and silence is letting go.

const BEAT_MS = 50; // the node takes 250 ms of silence for letting go
const LOST_MS = 1000; // without news, what is shown is no longer true
const CONFIRM_MS = 1500; // within which the guard says that it has stopped
const ADDRESS = location.origin.replace('http', 'ws');
const AXES = ['x', 'y', 'z'];

const $ = (id) => document.getElementById(id);
const is = (element, word) => { element.dataset.is = word; };

let socket = null;
let view = null; // what the arm does, as last told
let viewedAt = 0;
let stopAskedAt = null;
let rows = []; // of the joints: what is shown of each

// ---- What is held

const held = new Map(); // by what holds it: {joints | twist | grip: shares by index}

function hold(key, part) {
  const isNew = !held.has(key);
  const refusal = isNew ? whyNot(part) : '';
  if (refusal) {
    say(refusal, 'bad');
    return false;
  }
  held.set(key, part);
  if (isNew) {
    say('');
    beat();
  }
  return true;
}

function letGo(key) {
  if (!held.delete(key)) return;
  if (held.size) beat();
  else tell({ ask: 'release' });
}

function letGoOfAll() {
  for (const element of document.querySelectorAll('.held')) {
    element.dispatchEvent(new Event('let-go'));
  }
  for (const key of [...held.keys()]) letGo(key);
}

function whyNot(part) {
  if (!isConnected()) return 'No connection to the node.';
  if (view.estop) return 'Stopped: the arm does not move until the emergency stop is reset.';
  if (view.control !== 'yours') return 'Take control first.';
  const kinds = new Set([...held.values(), part].flatMap(Object.keys));
  if (kinds.has('joints') && kinds.has('twist')) return 'Joints or tool, not both at once.';
  return '';
}

function beat() {
  // What a slow network has not sent yet would come too late.
  if (!held.size || !view || socket.bufferedAmount) return;
  const speed = $('speed').value / 100;
  const frame = document.querySelector('input[name=frame]:checked').value;
  const said = { seen: view.time, frame, grip: 0, joints: null, twist: null };
  for (const part of held.values()) {
    for (const [i, share] of Object.entries(part.joints ?? {})) {
      said.joints ??= rows.map(() => 0);
      said.joints[i] = clip(said.joints[i] + share * speed);
    }
    for (const [i, share] of Object.entries(part.twist ?? {})) {
      said.twist ??= [0, 0, 0, 0, 0, 0];
      said.twist[i] = clip(said.twist[i] + share * speed);
    }
    said.grip = clip(said.grip + (part.grip ?? 0));
  }
  tell({ hold: said });
}

const clip = (share) => Math.max(-1, Math.min(1, share));

// A button that holds `part` while a finger, the mouse or a key is down on it.
function holdButton(text, label, part) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = text.length > 1 ? 'hold word' : 'hold';
  button.textContent = text;
  button.setAttribute('aria-label', label);
  const down = () => button.classList.toggle('held', hold(button, part));
  const up = () => { button.classList.remove('held'); letGo(button); };
  onHeld(button, down, null, up);
  button.addEventListener('keydown', (event) => {
    if (event.repeat || ![' ', 'Enter'].includes(event.key)) return;
    event.preventDefault();
    down();
  });
  button.addEventListener('keyup', up);
  return button;
}

// A pad or a slider that springs back: `part(right, up)` is what a place on it holds, -1 to 1.
function stick(element, part) {
  const knob = element.querySelector('.knob');
  const isFlat = element.classList.contains('tall');
  const put = (right, up) => {
    right = isFlat ? 0 : right;
    element.classList.toggle('held', hold(element, part(right, up)));
    const shown = element.classList.contains('held') ? [right, up] : [0, 0];
    const reach = (side) => (side - knob.clientWidth) / 2;
    knob.style.translate =
      `${shown[0] * reach(element.clientWidth)}px ${-shown[1] * reach(element.clientHeight)}px`;
    if (isFlat) element.setAttribute('aria-valuenow', Math.round(shown[1] * 100));
  };
  const at = (event) => {
    const box = element.getBoundingClientRect();
    const reach = (side) => (side - knob.clientWidth) / 2;
    put(
      quietMiddle((event.clientX - box.left - box.width / 2) / reach(box.width)),
      quietMiddle((box.top + box.height / 2 - event.clientY) / reach(box.height)),
    );
  };
  const keys = new Set();
  const up = () => {
    keys.clear();
    element.classList.remove('held');
    knob.style.translate = '';
    if (isFlat) element.setAttribute('aria-valuenow', 0);
    letGo(element);
  };
  onHeld(element, at, (event) => held.has(element) && at(event), up);
  const byKeys = (event) => {
    if (!event.key.startsWith('Arrow') || event.repeat) return;
    event.preventDefault();
    if (event.type === 'keydown') keys.add(event.key);
    else keys.delete(event.key);
    const side = (more, less) => keys.has(`Arrow${more}`) - keys.has(`Arrow${less}`);
    if (keys.size) put(side('Right', 'Left'), side('Up', 'Down'));
    else up();
  };
  element.addEventListener('keydown', (event) => {
    if (event.key.startsWith('Arrow')) event.preventDefault();
    byKeys(event);
  });
  element.addEventListener('keyup', byKeys);
}

// A share without the first tenth, where a finger only rests.
function quietMiddle(share) {
  return clip(Math.sign(share) * Math.max(0, Math.abs(share) - 0.1) / 0.9);
}

// Calls down, move and up for one pointer at a time; whatever takes the pointer away is up.
function onHeld(element, down, move, up) {
  let pointer = null;
  const end = (event) => {
    if (event.pointerId !== undefined && event.pointerId !== pointer) return;
    pointer = null;
    up();
  };
  element.addEventListener('pointerdown', (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    element.setPointerCapture(pointer);
    down(event);
  });
  if (move) {
    element.addEventListener('pointermove', (event) => event.pointerId === pointer && move(event));
  }
  for (const name of ['pointerup', 'pointercancel', 'lostpointercapture', 'blur', 'let-go']) {
    element.addEventListener(name, end);
  }
  element.addEventListener('contextmenu', (event) => event.preventDefault());
}

// ---- Between this page and the node

function connect() {
  socket = new WebSocket(`${ADDRESS}/helm`);
  socket.addEventListener('message', (event) => {
    const { about, view: news, refused } = JSON.parse(event.data);
    if (about) build(about);
    if (news) show(news);
    if (refused) {
      letGoOfAll();
      say(sentence(refused), 'bad');
    }
  });
  socket.addEventListener('close', () => {
    letGoOfAll();
    view = null;
    showConnection();
    setTimeout(connect, 1000);
  });
}

function tell(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

const isConnected = () =>
  socket?.readyState === WebSocket.OPEN && view && performance.now() - viewedAt < LOST_MS;

// Both ways: either may be broken.
function stop() {
  letGoOfAll();
  stopAskedAt ??= performance.now();
  tell({ ask: 'estop' });
  fetch('/stop', { method: 'POST', keepalive: true }).catch(() => {});
  say('Stopping…', 'bad');
}

// ---- What is shown

function say(words, kind = '') {
  if ($('said').textContent !== words) $('said').textContent = words; // read aloud once
  is($('said'), kind);
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + '.';

function build(about) {
  $('robot').textContent = about.robot;
  document.title = `${about.robot}: teleoperation`;
  rows = about.joints.map((joint) => {
    const place = document.createElement('div');
    const name = document.createElement('div');
    const meter = document.createElement('meter');
    const output = document.createElement('output');
    name.className = 'name';
    name.textContent = joint.name;
    Object.assign(meter, { min: joint.lower, max: joint.upper, value: joint.lower });
    meter.setAttribute('aria-label', `${joint.name} within its limits`);
    output.textContent = '–';
    const numbers = document.createElement('div');
    numbers.className = 'place';
    numbers.append(meter, output);
    place.append(name, numbers);
    return { meter, output, place };
  });
  $('joints').replaceChildren(
    ...rows.map((row, i) => pair(row.place, about.joints[i].name, (sign) => ({ joints: { [i]: sign } }))),
  );
  $('rotations').replaceChildren(
    ...AXES.map((axis, i) =>
      pair(named(`Turn about ${axis}`), `turn about ${axis}`, (sign) => ({ twist: { [3 + i]: sign } }))),
  );
  $('gripper').hidden = !about.gripper;
  const gripper = named('Gripper');
  gripper.append(Object.assign(document.createElement('span'), { id: 'width' }));
  $('gripper').replaceChildren(
    pair(gripper, 'gripper', (sign) => ({ grip: sign }), ['Close', 'Open']),
  );
}

function named(words) {
  return Object.assign(document.createElement('div'), { className: 'name', textContent: words });
}

function pair(place, what, part, texts = ['−', '+']) {
  const element = document.createElement('div');
  element.className = 'pair';
  const label = (i) => texts[i].length > 1 ? `${texts[i].toLowerCase()} ${what}` : `${what} ${'-+'[i]}`;
  element.append(
    place,
    holdButton(texts[0], label(0), part(-1)),
    holdButton(texts[1], label(1), part(1)),
  );
  return element;
}

function show(news) {
  if (news.estop && (!view?.estop || stopAskedAt !== null)) {
    letGoOfAll();
    say('Stopped: the arm holds.', 'bad');
  } else if (view?.estop && !news.estop) {
    say('Released.');
  }
  if (view && view.warning.number !== news.warning.number) say(news.warning.line, 'bad');
  view = news;
  viewedAt = performance.now();
  if (news.estop) stopAskedAt = null;
  showConnection();
  showControl();
  showArm();
  showSession();
  showCameras();
}

function showConnection() {
  $('connection').textContent = isConnected() ? 'connected' : 'no connection';
  is($('connection'), isConnected() ? 'good' : 'bad');
  if (!isConnected()) $('control').textContent = '';
  if (stopAskedAt !== null && performance.now() - stopAskedAt > CONFIRM_MS) {
    say("The guard has not confirmed the stop: press the arm's own emergency stop!", 'bad');
  }
}

function showControl() {
  const others = view.pages - 1;
  const watching = others ? `, ${others} more watching` : '';
  $('control').textContent = {
    yours: `You have control${watching}`,
    free: 'Nobody has control',
    taken: 'Another page has control',
  }[view.control];
  $('take').hidden = view.control === 'yours';
}

function showArm() {
  $('guard').textContent = `guard: ${view.guard || 'not heard'}`;
  is($('guard'), view.estop || !view.guard ? 'bad' : '');
  $('stop').classList.toggle('latched', view.estop);
  $('reset').hidden = !view.estop;
  if (!view.estop) $('confirm').close();
  $('no-joints').hidden = Boolean(view.joints);
  rows.forEach(({ meter, output }, i) => {
    const position = view.joints?.[i];
    output.textContent = position === undefined ? '–' : position.toFixed(3);
    if (position !== undefined) meter.value = position;
  });
  if ($('width')) {
    $('width').textContent = view.width == null ? '' : `: ${(view.width * 1000).toFixed(0)} mm`;
  }
}

function showSession() {
  const { state, index, result } = view.session ?? {};
  $('session-state').textContent = `session: ${state || 'none'}`;
  is($('session-state'), state === 'running' ? 'good' : '');
  $('episode').textContent = state && state !== 'idle'
    ? `Episode ${index + 1}: ${state}${result ? ` (${result})` : ''}` : 'No episode.';
  $('counts').textContent = Object.entries(view.counts).map(([name, n]) => `${n} ${name}`).join(', ');
  const mine = view.control === 'yours';
  const possible = {
    start: mine && state && state !== 'running',
    success: mine && state === 'running',
    failure: mine && state === 'running',
    discard: mine && ['prepare', 'ready', 'running'].includes(state),
    rerecord: mine && ['prepare', 'ready', 'running'].includes(state),
  };
  for (const button of document.querySelectorAll('[data-call]')) {
    button.disabled = !possible[button.dataset.call];
  }
}

// ---- Cameras: the next picture comes when the one before is shown

const cameras = new Map(); // by name: {chip, watching: {socket, figure} | null}

function showCameras() {
  const names = view.cameras;
  $('no-cameras').hidden = names.length > 0;
  for (const [name, camera] of cameras) {
    if (names.includes(name)) continue;
    unwatch(camera);
    camera.chip.remove();
    cameras.delete(name);
  }
  for (const name of names) {
    if (cameras.has(name)) continue;
    const chip = Object.assign(document.createElement('button'), { type: 'button', textContent: name });
    const camera = { name, chip, watching: null };
    chip.setAttribute('aria-pressed', false);
    chip.addEventListener('click', () => (camera.watching ? unwatch(camera) : watch(camera)));
    cameras.set(name, camera);
    $('camera-choice').append(chip);
    if (cameras.size === 1) watch(camera);
  }
}

function watch(camera) {
  const figure = document.createElement('figure');
  const canvas = Object.assign(document.createElement('canvas'), { width: 640, height: 480 });
  const caption = Object.assign(document.createElement('figcaption'), { textContent: `${camera.name}: no picture yet` });
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `camera ${camera.name}`);
  figure.append(canvas, caption);
  $('pictures').append(figure);
  const pictures = new WebSocket(`${ADDRESS}/camera/${camera.name}`);
  pictures.binaryType = 'blob';
  pictures.addEventListener('message', async (event) => {
    try {
      const picture = await createImageBitmap(event.data);
      Object.assign(canvas, { width: picture.width, height: picture.height });
      canvas.getContext('2d').drawImage(picture, 0, 0);
      caption.textContent = camera.name;
    } catch {
      caption.textContent = `${camera.name}: the picture cannot be read`;
    }
    await whenSeen();
    if (pictures.readyState === WebSocket.OPEN) pictures.send('shown');
  });
  pictures.addEventListener('close', () => unwatch(camera, pictures));
  camera.watching = { pictures, figure };
  camera.chip.setAttribute('aria-pressed', true);
}

function unwatch(camera, closed = camera.watching?.pictures) {
  if (!camera.watching || camera.watching.pictures !== closed) return;
  const { pictures, figure } = camera.watching;
  camera.watching = null;
  pictures.close();
  figure.remove();
  camera.chip.setAttribute('aria-pressed', false);
}

// Nobody looks at a hidden tab: nothing more is sent to it.
function whenSeen() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener('visibilitychange', resolve, { once: true });
  });
}

// ---- Wiring

stick($('xy'), (right, up) => ({ twist: { 0: up, 1: -right } }));
stick($('z'), (_, up) => ({ twist: { 2: up } }));
$('speed').addEventListener('input', () => { $('speed-shown').textContent = `${$('speed').value} %`; });
$('take').addEventListener('click', () => tell({ ask: 'take' }));
$('stop').addEventListener('pointerdown', stop);
$('stop').addEventListener('click', stop);
$('reset').addEventListener('click', () => $('confirm').show());
$('confirm').addEventListener('close', () => {
  if ($('confirm').returnValue === 'yes') tell({ ask: 'estop_reset' });
  $('confirm').returnValue = '';
});
for (const button of document.querySelectorAll('[data-call]')) {
  button.addEventListener('click', () => tell({ ask: button.dataset.call }));
}
for (const name of ['blur', 'pagehide']) window.addEventListener(name, letGoOfAll);
document.addEventListener('visibilitychange', () => document.hidden && letGoOfAll());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !event.repeat) stop();
});
setInterval(beat, BEAT_MS);
setInterval(showConnection, 250);
connect();
