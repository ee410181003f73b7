// Cards: remove and restore, repeats, the crop as a slider, and the mask brush.
const changed = () => document.querySelector('#artwork-changed')?.click();

async function send(method, address, body) {
  const answer = await fetch(address, {method, body});
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.message);
  return said;
}

function tell(card, words) {
  const line = card?.querySelector('.said');
  if (line) line.textContent = words;
}

async function change(card, method, address, body) {
  try {
    tell(card, (await send(method, address, body)).message);
    return true;
  } catch (error) {
    tell(card, error instanceof TypeError ? card.closest('[data-failed]')?.dataset.failed ?? '' : error.message);
    return false;
  }
}

// Gradio draws the cards anew after a change; whoever uses the keyboard goes on where they were.
function focusAfterDrawing(root, find) {
  const place = document.querySelector(root);
  if (!place) return;
  const watch = new MutationObserver(() => {
    const next = find();
    if (next) { next.focus({preventScroll: true}); watch.disconnect(); }
  });
  watch.observe(place, {childList: true, subtree: true});
  setTimeout(() => watch.disconnect(), 8000);
}

document.addEventListener('click', async (event) => {
  const button = event.target.closest?.('#cards button.remove, #removed button.restore, #cards button.mask');
  if (!button) return;
  const card = button.closest('li');
  if (button.matches('.mask')) return openMask(card, button);
  const address = (button.matches('.remove') ? '/remove/' : '/restore/') + card.dataset.place;
  button.disabled = true;
  if (!await change(card, 'POST', address)) { button.disabled = false; return; }
  const next = card.nextElementSibling ?? card.previousElementSibling;
  const place = next?.dataset.place;
  focusAfterDrawing(button.matches('.remove') ? '#cards' : '#removed', () =>
    place && document.querySelector(`li[data-place="${CSS.escape(place)}"] button.${button.className}`));
  card.remove();
  changed();
});

document.addEventListener('change', async (event) => {
  const field = event.target;
  if (!field.matches?.('#cards input.repeats')) return;
  const card = field.closest('li'), place = card.dataset.place;
  const value = Math.min(100, Math.max(1, Math.round(Number(field.value)) || 1));
  field.value = value;
  if (await change(card, 'PUT', '/choice/' + place, JSON.stringify({repeats: value}))) changed();
});

// The crop: a share of the spare room along one axis.
const waiting = new WeakMap();

function moveCrop(crop, share) {
  share = Math.min(1, Math.max(0, share));
  const [,, width, height] = crop.getAttribute('viewBox').split(' ').map(Number);
  const box = crop.dataset.box.split(' ').map(Number);
  if (crop.dataset.axis === 'x') box[0] = (width - box[2]) * share; else box[1] = (height - box[3]) * share;
  crop.dataset.box = box.join(' ');
  crop.dataset.share = share;
  crop.setAttribute('aria-valuenow', Math.round(100 * share));
  const kept = crop.querySelector('.kept');
  kept.setAttribute('x', box[0]);
  kept.setAttribute('y', box[1]);
  crop.querySelector('.cut').setAttribute('d',
    `M0 0H${width}V${height}H0ZM${box[0]} ${box[1]}h${box[2]}v${box[3]}h${-box[2]}Z`);
  clearTimeout(waiting.get(crop));
  waiting.set(crop, setTimeout(() => saveCrop(crop), 500));
}

function saveCrop(crop) {
  const share = Math.round(1000 * Number(crop.dataset.share)) / 1000;
  const body = JSON.stringify({crop: crop.dataset.axis === 'x' ? [share, 0.5] : [0.5, share]});
  return change(crop.closest('li'), 'PUT', '/choice/' + crop.dataset.place, body);
}

document.addEventListener('keydown', (event) => {
  const crop = event.target;
  if (!crop.matches?.('svg.crop')) return;
  const step = event.shiftKey ? 0.1 : 0.02, share = Number(crop.dataset.share);
  const to = {ArrowLeft: share - step, ArrowUp: share - step, ArrowRight: share + step, ArrowDown: share + step,
    PageUp: share - 0.1, PageDown: share + 0.1, Home: 0, End: 1}[event.key];
  if (to === undefined) return;
  event.preventDefault();
  moveCrop(crop, to);
});

document.addEventListener('pointerdown', (event) => {
  const crop = event.target.closest?.('svg.crop');
  if (!crop) return;
  event.preventDefault();
  crop.focus();
  crop.setPointerCapture(event.pointerId);
  const x = crop.dataset.axis === 'x', start = x ? event.clientX : event.clientY, share = Number(crop.dataset.share);
  const [,, width, height] = crop.getAttribute('viewBox').split(' ').map(Number);
  const box = crop.dataset.box.split(' ').map(Number), shown = crop.getBoundingClientRect();
  const spare = x ? (width - box[2]) * shown.width / width : (height - box[3]) * shown.height / height;
  const drag = (move) => moveCrop(crop, share + ((x ? move.clientX : move.clientY) - start) / Math.max(1, spare));
  const end = () => {
    crop.removeEventListener('pointermove', drag);
    crop.removeEventListener('pointerup', end);
    crop.removeEventListener('pointercancel', end);
  };
  crop.addEventListener('pointermove', drag);
  crop.addEventListener('pointerup', end);
  crop.addEventListener('pointercancel', end);
});

// The mask brush. What counts is white on `mask`; the canvas shows what does not, over the picture.
let mask = null, masked = null;

async function openMask(card, button) {
  const dialog = document.querySelector('#mask-dialog');
  const picture = dialog.querySelector('img'), canvas = dialog.querySelector('canvas');
  dialog.querySelector('#mask-title').textContent = dialog.dataset.title.replace('{name}', card.dataset.name);
  dialog.querySelector('.said').textContent = '';
  picture.alt = card.dataset.name;
  picture.src = '/large/' + card.dataset.place;
  masked = {place: card.dataset.place, button};
  try { await picture.decode(); } catch { return tell(card, card.closest('[data-failed]').dataset.failed); }
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  mask = new OffscreenCanvas(canvas.width, canvas.height);
  fill('white');
  if (button.dataset.mask !== '0') {
    const kept = new Image();
    kept.src = '/mask/' + card.dataset.place + '?v=' + button.dataset.mask;
    try { await kept.decode(); mask.getContext('2d').drawImage(kept, 0, 0, canvas.width, canvas.height); } catch { /* drawn anew */ }
  }
  showMask();
  dialog.showModal();
  dialog.querySelector('.mask-brush').focus();
}

function fill(colour) {
  const pen = mask.getContext('2d', {willReadFrequently: true});
  pen.fillStyle = colour;
  pen.fillRect(0, 0, mask.width, mask.height);
}

function showMask() {
  const canvas = document.querySelector('#mask-dialog canvas'), pen = canvas.getContext('2d');
  const values = mask.getContext('2d', {willReadFrequently: true}).getImageData(0, 0, mask.width, mask.height);
  for (let at = 0; at < values.data.length; at += 4) {
    const out = 255 - values.data[at];
    values.data[at] = 154; values.data[at + 1] = 52; values.data[at + 2] = 18; values.data[at + 3] = out * 0.75;
  }
  pen.putImageData(values, 0, 0);
}

function paintMask(event, canvas, from) {
  const shown = canvas.getBoundingClientRect(), scale = canvas.width / shown.width, dialog = canvas.closest('dialog');
  const radius = Number(dialog.querySelector('.mask-brush').value) / 100 * Math.max(canvas.width, canvas.height) / 2 + 2;
  const hides = dialog.querySelector('[name=mask-way]:checked').value === 'hide';
  const at = [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale];
  const pens = [[mask.getContext('2d'), hides ? 'black' : 'white', 'source-over'],
    [canvas.getContext('2d'), 'rgb(154 52 18 / 75%)', hides ? 'source-over' : 'destination-out']];
  for (const [pen, colour, way] of pens) {
    if (pen.canvas === canvas && !hides) pen.fillStyle = 'black'; else pen.fillStyle = colour;
    pen.globalCompositeOperation = way;
    pen.strokeStyle = pen.fillStyle;
    pen.lineCap = 'round';
    pen.lineWidth = 2 * radius;
    pen.beginPath();
    pen.moveTo(...(from ?? at));
    pen.lineTo(...at);
    pen.stroke();
    pen.globalCompositeOperation = 'source-over';
  }
  return at;
}

document.addEventListener('pointerdown', (event) => {
  const canvas = event.target;
  if (!canvas.matches?.('#mask-dialog canvas') || !mask) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  let from = paintMask(event, canvas);
  const draw = (move) => { for (const point of move.getCoalescedEvents?.() ?? [move]) from = paintMask(point, canvas, from); };
  canvas.addEventListener('pointermove', draw);
  const end = () => { canvas.removeEventListener('pointermove', draw); showMask(); };
  canvas.addEventListener('pointerup', end, {once: true});
  canvas.addEventListener('pointercancel', end, {once: true});
});

document.addEventListener('click', async (event) => {
  const button = event.target.closest?.('#mask-dialog [data-do]');
  if (!button) return;
  const dialog = button.closest('dialog'), pen = mask.getContext('2d'), wanted = button.dataset.do;
  if (wanted === 'cancel') { dialog.close(); masked.button.focus(); return; }
  if (wanted === 'save') return saveMask(dialog);
  if (wanted === 'all') fill('white');
  if (wanted === 'none') fill('black');
  if (wanted === 'invert') {
    pen.globalCompositeOperation = 'difference';
    fill('white');
    pen.globalCompositeOperation = 'source-over';
  }
  if (wanted === 'box') {
    const [left, top, width, height] = ['left', 'top', 'width', 'height'].map((key) => Number(dialog.querySelector('.mask-' + key).value) / 100);
    pen.fillStyle = dialog.querySelector('[name=mask-way]:checked').value === 'hide' ? 'black' : 'white';
    pen.fillRect(left * mask.width, top * mask.height, width * mask.width, height * mask.height);
  }
  showMask();
});

async function saveMask(dialog) {
  try {
    const drawn = await mask.convertToBlob({type: 'image/png'});
    await send('PUT', '/mask/' + masked.place, drawn);
  } catch (error) {
    dialog.querySelector('.said').textContent = error instanceof TypeError ? document.querySelector('[data-failed]').dataset.failed : error.message;
    return;
  }
  dialog.close();
  const place = masked.place;
  focusAfterDrawing('#cards', () => document.querySelector(`li[data-place="${CSS.escape(place)}"] button.mask`));
  changed();
}
