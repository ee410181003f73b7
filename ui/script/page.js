// The address names the project and the tab, so that a reload, a bookmark or another window comes back to them.
const remember = (name, value) => {
  const address = new URL(location.href);
  if (!value || address.searchParams.get(name) === value) return;
  address.searchParams.set(name, value);
  history.replaceState(history.state, '', address);
};
const tabOf = (button) => /^tab-(.+)-button$/.exec(button ? button.id : '')?.[1];
const inSight = () => tabOf(document.querySelector('[role=tab][aria-selected=true]'));

// One small question to the server, again and again. The head is filled at once; of the sections only what is new and in
// sight is drawn, by the button that the section hears on.
const marks = {}, stale = new Set();
let asked = 0, timer = 0;
const press = (section) => {
  const button = document.getElementById('news-' + section);
  if (!button) return;
  stale.delete(section);
  button.click();
};
const fill = (place, html) => {
  if (place.dataset.shown === html) return;
  place.dataset.shown = html;
  const fresh = document.createElement('template');
  fresh.innerHTML = html;
  // The line itself stays where it is: a screen reader reads out what changes in it.
  const line = place.querySelector('[role=status]'), said = fresh.content.querySelector('[role=status]');
  if (line.innerHTML !== said.innerHTML) line.innerHTML = said.innerHTML;
  while (line.nextSibling) line.nextSibling.remove();
  said.remove();
  line.after(fresh.content);
};
// What several tabs hear of: the tab that says what it was drawn from. While that is in sight and of another mark than the
// server's, it is asked for again: a drawing that failed, or a press that was lost, is made good. Out of sight each new mark
// counts once.
const heard = {
  made: {tab: 'library', drawn: () => document.querySelector('#shelf [data-made]')},
  arrived: {tab: 'captions', drawn: (project) => document.querySelector(`#caption-list [data-project="${CSS.escape(project)}"]`)},
};
const isNew = (section, mark, project) => {
  if (section in heard) {
    const drawn = heard[section].drawn(project);
    if (drawn && inSight() === heard[section].tab) {
      marks[section] = mark;
      return drawn.dataset[section] !== mark;
    }
    // What was never drawn for this project will be, when its tab is turned to.
    if (!drawn && section !== 'made') return false;
  }
  if (marks[section] === mark) return false;
  marks[section] = mark;
  return true;
};
const show = (news) => {
  const status = document.querySelector('#status [role=status]');
  if (status) fill(status.parentElement, news.status);
  remember('project', news.project);
  for (const [section, mark] of Object.entries(news.marks)) if (isNew(section, mark, news.project)) stale.add(section);
  if (++asked % 10 === 0) stale.add(inSight());
  for (const section of [inSight(), ...Object.keys(heard)]) if (stale.has(section)) press(section);
};
// Out of sight nothing is drawn. Each drawing has a bell, a field whose change the server answers; one that should ring in
// another tab is owed, and rings when that is turned to.
const owed = new Map();  // bell -> tab
const another = () => String(Math.random());
window.impasto = {
  ring: (tab, bell, now) => {
    if (tab === inSight()) return another();
    owed.set(bell, tab);
    return now;
  },
  settle: (bell, now) => owed.delete(bell) ? another() : now,
};
const settle = () => {
  const tab = inSight();
  if ([...owed.values()].includes(tab)) document.getElementById('turned-' + tab)?.click();
};

const ask = async () => {
  clearTimeout(timer);
  settle();
  const field = document.querySelector('#project input');
  try {
    const project = field ? field.value : '';
    // An answer that never comes must not end the questions.
    const asking = {cache: 'no-store', signal: AbortSignal.timeout(30000)};
    const answer = await fetch('/pulse?project=' + encodeURIComponent(project), asking);
    if (answer.status === 401) location.reload();  // to the login
    const news = answer.ok && await answer.json();
    if (news && field && field.isConnected && field.value === project) show(news);
  } catch { /* the server is away, which Gradio tells; it is asked again */ }
  clearTimeout(timer);
  timer = setTimeout(ask, document.hidden ? 10000 : 1500);
};
const soon = () => {
  clearTimeout(timer);
  timer = setTimeout(ask, 300);
};
const turned = (tab) => {
  remember('tab', tab);
  if (stale.has(tab)) press(tab);
  settle();
};
// However a tab comes into sight: by hand, or by what the address names.
new MutationObserver(settle).observe(document.documentElement, {subtree: true, attributeFilter: ['aria-selected']});
document.addEventListener('click', (event) => {
  const target = event.target.closest && event.target.closest('button, [role=option], a');
  if (!target || /^(news|turned)-/.test(target.id)) return;
  if (target.matches('[role=tab]')) turned(tabOf(target));
  soon();
});
document.addEventListener('keyup', (event) => {
  if (event.target.matches && event.target.matches('[role=tab]')) turned(inSight());
});
document.addEventListener('visibilitychange', soon);
document.addEventListener('change', soon);
ask();

// What asks for attention gets the focus, once.
let attended = '';
new MutationObserver(() => {
  const alert = document.querySelector('[data-focus]');
  if (alert && alert.dataset.focus !== attended) {
    attended = alert.dataset.focus;
    alert.focus();
  }
}).observe(document.documentElement, {childList: true, subtree: true});
