// The drafter's copy of a session: committed tokens, and the chain that was proposed below them.
//
// The target's word is all there is to know. A commit walks along the chain: what it confirms is
// committed, what it contradicts is dropped. Nothing is rolled back and nothing is acknowledged.

export class Session {
  constructor({ tokenIds, limits }, lastId = 0) {
    this.committed = [...tokenIds];
    this.chain = []; // tokens below the last committed one
    this.limits = limits;
    this.lastId = lastId; // ids are never used twice in a session
  }

  // False when tokens are missing before `baseLength`.
  commit({ baseLength, tokenIds, limits }) {
    if (baseLength > this.committed.length) {
      return false;
    }
    this.limits = limits ?? this.limits;
    tokenIds.forEach((token, i) => this.#decide(baseLength + i, token));
    return true;
  }

  // Adds tokens as far as the limits go, and says so as a Grow. A chain is sent as a whole below
  // the last committed token, with new ids: the target knows nodes that it has already by them only.
  grow(number, tokens) {
    const room = Math.min(this.limits.depth, this.limits.maxNodes);
    const fresh = this.chain.length === 0 ? tokens.slice(0, room) : [];
    const ids = fresh.map((_, i) => this.lastId + i + 1);
    this.lastId += fresh.length;
    this.chain.push(...fresh);
    return {
      session: number,
      baseLength: this.committed.length,
      nodeIds: ids,
      parentIds: ids.map((id, i) => (i === 0 ? 0 : id - 1)),
      tokenIds: fresh,
      logProbs: fresh.map(() => 0),
      complete: true,
    };
  }

  #decide(position, token) {
    if (position < this.committed.length) {
      if (this.committed[position] !== token) {
        this.committed.length = position; // what was held belonged to another past
        this.committed.push(token);
        this.chain = [];
      }
      return;
    }
    this.committed.push(token);
    this.chain = this.chain[0] === token ? this.chain.slice(1) : [];
  }
}
