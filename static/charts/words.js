// How numbers and times are said: as web/words.py says them, without noughts at the end.

export const UNITS = { s: 1, m: 60, h: 3600, d: 86400 };
export const whole = (value) => Math.round(value).toLocaleString("en");
export const number = (value) => (value >= 100 || value === 0 ? whole(value) : value >= 1 ? `${+value.toFixed(1)}` : `${+value.toPrecision(2)}`);
export const percent = (share) => `${Math.round(share * 100)} %`;
export const seconds = (value) => {
  if (value >= 600) return `${Math.floor(value / 60)} min`;
  if (value >= 59.5) return `${Math.floor(Math.round(value) / 60)} min${Math.round(value) % 60 ? ` ${Math.round(value) % 60} s` : ""}`;
  if (value >= 9.995) return `${Math.round(value)} s`;
  if (value >= 0.9995) return `${+value.toFixed(2)} s`;
  return value === 0 ? "0" : `${+(value * 1e3).toPrecision(value < 0.01 ? 2 : 3)} ms`;
};
export const told = (words, value) => (value == null ? "—" : words(value));
export const two = (value) => `${value}`.padStart(2, "0");
const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
export const day = (at) => `${at.getDate()} ${MONTHS[at.getMonth()]}`;
export const hour = (at) => `${two(at.getHours())}:${two(at.getMinutes())}`;
export const second = (at) => `${hour(at)}:${two(at.getSeconds())}`;
export const clock = (time, fine) => {
  const at = new Date(time * 1000);
  const today = at.toDateString() === new Date().toDateString();
  return `${today ? "" : `${day(at)} `}${fine ? second(at) : hour(at)}`;
};
export const length = (span) => {
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (span >= (unit === 86400 ? 2 * unit : unit)) return `${+(span / unit).toFixed(1)} ${name}`;
  return `${Math.round(span)} s`;
};

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
