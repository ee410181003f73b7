// The strength slider swaps pictures that are there already; two strengths laid over each other; the one that is marked.
const kept = new Map();  // address -> picture in memory, so that a key shows its picture at once
const listed = (element, name) => JSON.parse(element.dataset[name] || '[]');

const fetchAll = (box) => {
  if (box.dataset.fetched) return;
  box.dataset.fetched = 'yes';
  if (kept.size > 400) kept.clear();
  for (const picture of box.querySelectorAll('img[data-sources]')) {
    for (const address of listed(picture, 'sources')) {
      if (!kept.has(address)) { const image = new Image(); image.src = address; kept.set(address, image); }
    }
  }
};
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { fetchAll(entry.target); seen.unobserve(entry.target); }
});
new MutationObserver(() => {
  for (const box of document.querySelectorAll('.tryout:not([data-watched])')) { box.dataset.watched = 'yes'; seen.observe(box); }
}).observe(document.documentElement, {childList: true, subtree: true});

const uncover = (box, percent) => {
  const slider = box.querySelector('.reveal');
  slider.value = percent;
  slider.setAttribute('aria-valuetext', Math.round(percent) + '%');
  box.style.setProperty('--reveal', percent + '%');
};

document.addEventListener('input', (event) => {
  const slider = event.target;
  if (!slider.matches) return;
  if (slider.matches('.compare .reveal')) { uncover(slider.closest('.compare'), Number(slider.value)); return; }
  if (!slider.matches('.tryout .strength input')) return;
  const box = slider.closest('.tryout'), told = listed(slider, 'told')[slider.value];
  slider.setAttribute('aria-valuetext', told);
  box.querySelector('output').textContent = told;
  for (const picture of box.querySelectorAll('img[data-sources]')) picture.src = listed(picture, 'sources')[slider.value];
});

document.addEventListener('change', (event) => {
  const box = event.target.matches && event.target.matches('.compare select') && event.target.closest('.compare');
  if (!box) return;
  const which = box.querySelector('.which'), urls = listed(box, 'urls')[which ? Number(which.value) : 0];
  for (const [side, place] of [['before', '.under'], ['after', '.over']]) {
    const select = box.querySelector('select.' + side), picture = box.querySelector(place);
    picture.src = urls[Number(select.value)];
    const name = which ? which.options[which.selectedIndex].text + ', ' : '';
    picture.alt = name + select.options[select.selectedIndex].text;
  }
});

const drag = (event) => {
  const pair = event.target.closest && event.target.closest('.compare .pair');
  if (!pair || (event.type === 'pointermove' && event.buttons !== 1)) return;
  const place = pair.getBoundingClientRect();
  uncover(pair.closest('.compare'), Math.max(0, Math.min(100, 100 * (event.clientX - place.left) / place.width)));
};
document.addEventListener('pointerdown', drag);
document.addEventListener('pointermove', drag);

// Marks a strength, or a checkpoint and a strength; making the file of a checkpoint takes a while.
document.addEventListener('click', async (event) => {
  const button = event.target.closest && event.target.closest('button.prefer, button.choose');
  if (!button) return;
  const box = button.closest('.tryout') || button.closest('.scroll').parentElement, told = box.querySelector('.told');
  const wanted = button.matches('.choose')
    ? {strength: Number(button.dataset.strength), step: Number(button.dataset.step)}
    : {strength: listed(box, 'strengths')[box.querySelector('.strength input').value]};
  try {
    const answer = await fetch('/prefer/' + button.dataset.key, {method: 'PUT', body: JSON.stringify(wanted)});
    let said = await answer.json();
    told.textContent = said.message;
    let state = said.work ? 'working' : 'finished';
    while (state === 'working') {
      await new Promise((wake) => setTimeout(wake, 700));
      const next = await (await fetch('/making/' + said.work)).json();
      state = next.state;
      if (state !== 'working') told.textContent = next.message;
    }
    if (answer.ok && state === 'finished' && button.matches('.choose')) {
      for (const other of box.querySelectorAll('button.choose')) other.setAttribute('aria-pressed', String(other === button));
    }
  } catch (error) { told.textContent = told.dataset.silent; }
});
