// Poll: ask one address again and again, not while nobody looks, less often while nobody answers.

const TIMEOUT_MS = 10_000;
const LONGEST_MS = 15_000;

export class Poll {
  #etag = "";
  #url = "";
  #timer = 0;
  #asking = null;
  #fails = 0;

  /**
   * `url()` is what to ask, null for nothing this time; `every()` the milliseconds between two questions; `take(answer)` gets
   * each new answer, `same()` hears that nothing is new, `fail(wait_ms)` that there was none.
   */
  constructor({ url, every, take, same = () => {}, fail = () => {} }) {
    Object.assign(this, { url, every, take, same, fail });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#rest() : this.now()));
  }

  /** Ask at once, whatever was going on. */
  now() {
    this.#rest();
    if (!document.hidden) void this.#ask();
  }

  #rest() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = null;
  }

  async #ask() {
    const url = this.url();
    if (url === null) {
      this.#timer = setTimeout(() => void this.#ask(), this.every());
      return;
    }
    const asking = (this.#asking = new AbortController());
    const answer = await this.#answer(url, asking);
    if (asking !== this.#asking) return; // asked anew meanwhile, or nobody looks
    let wait_ms = this.every();
    if (answer === null) {
      this.#fails += 1;
      wait_ms = Math.min(LONGEST_MS, Math.max(wait_ms, 500 * 2 ** this.#fails));
    } else {
      this.#fails = 0;
    }
    this.#timer = setTimeout(() => void this.#ask(), wait_ms);
    if (answer === null) this.fail(wait_ms);
    else if (answer.body === undefined) this.same();
    else this.take(answer.body);
  }

  /** What is there, without a body if it is what was there before; null if there is no answer. */
  async #answer(url, asking) {
    if (url !== this.#url) [this.#url, this.#etag] = [url, ""];
    const late = setTimeout(() => asking.abort(), TIMEOUT_MS);
    try {
      const headers = this.#etag ? { "If-None-Match": this.#etag } : {};
      const answer = await fetch(url, { headers, cache: "no-store", signal: asking.signal });
      if (answer.status === 304) return {};
      if (!answer.ok) return null;
      const body = await answer.json();
      this.#etag = answer.headers.get("ETag") ?? "";
      return { body };
    } catch {
      return null; // nobody there, too late, or no JSON: the same to whoever looks
    } finally {
      clearTimeout(late);
    }
  }
}
