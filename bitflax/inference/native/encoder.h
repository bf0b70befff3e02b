// The whole model: embeddings, layers, pooler and classifier of a batch.
//
// Units of rows are shared among threads; where there are fewer of them than threads, all
// threads share a unit's channels.
#pragma once

#include <initializer_list>

#include "attention.h"
#include "batch.h"

namespace bitflax {
namespace {

struct LayerWeights {
  Weights query, key, value, out, up, down;
};

// What is between a unit's matrices.
struct Team {
  Buffer x, y, inner;
};

// All that `count` things of type T need, where nothing is constructed.
template <class T> T* made(size_t count) {
  return static_cast<T*>(calloc(count ? count : 1, sizeof(T)));
}

class Encoder {
 public:
  static Encoder* make(const Flat& flat, Pool* pool) {
    auto encoder = made<Encoder>(1);
    if (encoder && encoder->start(flat, pool)) return encoder;
    if (encoder) encoder->stop();
    free(encoder);
    return nullptr;
  }

  void stop() {
    for (int i = 0; layers_ && i < flat_.shape.layers; i++) {
      each_weights(layers_[i], [](Weights& w, const Linear&, bool) { free_weights(w); });
    }
    for (int i = 0; workers_ && teams_ && i < pool_->threads(); i++) {
      Worker& w = workers_[i];
      for (Buffer* b : {&w.codes, &w.sums, &w.tables, &w.values, &w.panel, &w.scores,
                        &w.keys}) {
        b->release();
      }
      for (Buffer* b : {&teams_[i].x, &teams_[i].y, &teams_[i].inner}) b->release();
    }
    for (Buffer* b : {&x_, &query_, &key_, &value_, &context_, &first_, &phases_}) {
      b->release();
    }
    batch_.release();
    free_weights(pooler_), free_weights(classifier_);
    free(layers_), free(workers_), free(teams_);
  }

  size_t bytes() const {
    size_t total = sizeof *this + pooler_.bytes() + classifier_.bytes();
    for (int i = 0; i < flat_.shape.layers; i++) {
      const LayerWeights& l = layers_[i];
      for (auto w : {&l.query, &l.key, &l.value, &l.out, &l.up, &l.down}) {
        total += w->bytes();
      }
    }
    for (const Buffer* b :
         {&x_, &query_, &key_, &value_, &context_, &first_, &batch_.rows}) {
      total += b->size;
    }
    for (int i = 0; i < pool_->threads(); i++) {
      const Worker& w = workers_[i];
      for (const Buffer* b : {&w.codes, &w.sums, &w.tables, &w.values, &w.panel,
                              &w.scores, &w.keys}) {
        total += b->size;
      }
      total += teams_[i].x.size + teams_[i].y.size + teams_[i].inner.size;
    }
    return total;
  }

  int run(const Inputs& inputs, float* logits) {
    int status = batch_.place(inputs, flat_.shape);
    if (status != BITFLAX_OK) return status;
    if (!reserve()) return BITFLAX_MEMORY;
    logits_ = logits;
    barrier_.reset(pool_->threads());
    memset(phases_.bytes, 0, phases_.size);
    auto work = [](void* self, int member) {
      static_cast<Encoder*>(self)->work(member);
    };
    return pool_->run(work, this) ? BITFLAX_OK : BITFLAX_MEMORY;
  }

 private:
  template <class F> void each_weights(LayerWeights& to, F f, const Layer* from = nullptr) {
    static const Layer none = {};
    const Layer& l = from ? *from : none;
    f(to.query, l.query, l.sites[kQueryIn].coded());
    f(to.key, l.key, l.sites[kKeyIn].coded());
    f(to.value, l.value, l.sites[kValueIn].coded());
    f(to.out, l.out, l.sites[kOutIn].coded());
    f(to.up, l.up, l.sites[kUpIn].coded());
    f(to.down, l.down, l.sites[kDownIn].coded());
  }

  bool start(const Flat& flat, Pool* pool) {
    flat_ = flat, pool_ = pool;
    const Shape& shape = flat.shape;
    workers_ = made<Worker>(pool->threads());
    teams_ = made<Team>(pool->threads());
    layers_ = made<LayerWeights>(shape.layers);
    if (!workers_ || !teams_ || !layers_) return false;
    bool ok = make_weights(flat.pooler, flat.pooler_in.coded(), pooler_) &&
              make_weights(flat.classifier, false, classifier_);
    unit_ = kStep;
    for (int i = 0; ok && i < shape.layers; i++) {
      each_weights(
          layers_[i],
          [&](Weights& w, const Linear& from, bool coded) {
            ok = ok && make_weights(from, coded, w);
            if (ok && !w.parts) unit_ = 4 * kStep;  // what is unpacked serves more rows
          },
          &flat.layer[i]);
      for (const Rounding& r : flat.layer[i].sites) by_text_ |= r.range == kText;
    }
    if (!ok) return false;
    const Layer& last = flat.layer[shape.layers - 1];
    first_only_ = true;
    for (const Rounding& r : last.sites) first_only_ &= r.range != kText;
    return true;
  }

  bool reserve() {
    const Shape& s = flat_.shape;
    width_ = padded(s.width), all_ = padded(s.heads * s.head), inner_ = padded(s.inner);
    int unit = unit_;
    if (by_text_ && batch_.longest > unit) unit = batch_.longest;
    bool ok = phases_.reserve(sizeof(Phase) * kPhases * (s.layers + 1)) &&
              batch_.cut(unit_, by_text_) &&
              x_.reserve_floats(size_t(batch_.row_count) * width_) &&
              first_.reserve_floats(size_t(batch_.text_count) * width_);
    for (Buffer* b : {&query_, &key_, &value_, &context_}) {
      ok = ok && b->reserve_floats(size_t(batch_.row_count) * all_ + kFloats);
    }
    size_t codes = 0, sums = 0, widest = 0;
    auto see = [&](Weights& w, const Linear&, bool) {
      size_t code = w.code_bytes();
      size_t sum = size_t(w.parts) * w.blocks() * w.channels();
      codes = code > codes ? code : codes, sums = sum > sums ? sum : sums;
      if (!w.parts && size_t(w.in) > widest) widest = w.in;
    };
    for (int i = 0; i < s.layers; i++) each_weights(layers_[i], see);
    see(pooler_, flat_.pooler, false), see(classifier_, flat_.classifier, false);
    size_t tables = Binary::kScratch > Ternary::kScratch ? Binary::kScratch
                                                         : Ternary::kScratch;
    for (int i = 0; ok && i < pool_->threads(); i++) {
      Worker& w = workers_[i];
      ok = w.codes.reserve(kStep * codes + batch_.longest) &&
           w.sums.reserve(4 * 3 * kStep * sums + 64) &&
           w.tables.reserve(tables + 64) &&
           w.keys.reserve_floats(key_floats(batch_.longest, s.head)) &&
           w.scores.reserve_floats(score_floats(batch_.longest, s.head)) &&
           w.values.reserve_floats(size_t(unit) * padded(widest)) &&
           w.panel.reserve_floats(widest * kPanel) &&
           teams_[i].x.reserve_floats(size_t(unit) * width_) &&
           teams_[i].y.reserve_floats(size_t(unit) * width_) &&
           teams_[i].inner.reserve_floats(size_t(unit) * inner_);
    }
    // What is shared has to be worth the waiting: some 40 microseconds of a layer.
    constexpr int64_t kWorth = 16 << 20;
    int64_t products = int64_t(width_) * (4 * all_ + 2 * inner_) * batch_.row_count;
    together_ = batch_.unit_count < pool_->threads() && products >= kWorth;
    return ok;
  }

  // Call f(i) for all i below count, each on the next thread that is free; return when
  // all are done. A thread that the system has put aside is waited for only if it has
  // begun one.
  template <class F> void each_task(int phase, int count, F f) {
    Phase& now = reinterpret_cast<Phase*>(phases_.bytes)[phase];
    auto next = [&] { return __atomic_fetch_add(&now.begun, 1, __ATOMIC_RELAXED); };
    for (int i = next(); i < count; i = next()) {
      f(i);
      __atomic_fetch_add(&now.done, 1, __ATOMIC_RELEASE);
    }
    wait_for(&now.done, count);
  }

  // Call f(worker, team, unit) for all units; all threads share the channels of each
  // where they are few and large.
  template <class F> void each_unit(int member, const Buffer& held, int count, int phase,
                                    F f) {
    auto units = reinterpret_cast<const Unit*>(held.bytes);
    Worker& me = workers_[member];
    me.index = 0, me.count = 1;
    if (!together_) {
      each_task(phase, count, [&](int u) { f(me, teams_[member], units[u]); });
      return;
    }
    me.index = member, me.count = pool_->threads(), me.barrier = &barrier_;
    for (int u = 0; u < count; u++) {
      me.sync();
      f(me, teams_[0], units[u]);
    }
    me.sync();
  }

  struct Phase {
    int begun, done;
  };
  static constexpr int kPhases = 3;  // a layer, and as many after the last

  void work(int member) {
    const int layers = flat_.shape.layers;
    int phase = 0;
    for (int i = 0; i < layers; i++, phase += kPhases) {
      bool firsts = first_only_ && i == layers - 1;
      each_unit(member, batch_.units, batch_.unit_count, phase,
                [&](Worker& me, Team& team, Unit u) {
                  if (i) transform(me, team, i - 1, u, x_.floats());
                  else if (me.index == 0) embed(u);
                  me.sync();
                  project(me, i, u, firsts);
                });
      if (firsts) {
        each_unit(member, batch_.firsts, batch_.first_count, phase + 1,
                  [&](Worker& me, Team&, Unit u) { project_firsts(me, i, u); });
      }
      attend_all(member, i, firsts, phase + 2);
    }
    finish_all(member, phase);
  }

  // The last layer's rest, and what is made of first tokens.
  void finish_all(int member, int phase) {
    int last = flat_.shape.layers - 1;
    if (!first_only_) {
      each_unit(member, batch_.units, batch_.unit_count, phase,
                [&](Worker& me, Team& team, Unit u) {
                  transform(me, team, last, u, x_.floats());
                });
    }
    each_unit(member, batch_.firsts, batch_.first_count, phase + 1,
              [&](Worker& me, Team& team, Unit u) {
                if (first_only_) transform(me, team, last, u, first_.floats());
                classify(me, team, u);
              });
  }

  // x = norm(word + position + type).
  void embed(Unit u) {
    int width = flat_.shape.width;
    for (int i = u.first; i < u.last; i++) {
      float* x = x_.floats() + size_t(i) * width_;
      bool add = false;
      auto look = [&](const Matrix& table, int row) {
        for (int p = 0; p < table.parts; p++, add = true) {
          values_of(table.part[p], row, 0, width, add, x);
        }
      };
      look(flat_.word, batch_.row[i].id);
      look(flat_.position, batch_.row[i].position);
      look(flat_.type, batch_.row[i].type);
      normalize(x, width, flat_.shape.epsilon, flat_.norm_scale, flat_.norm_bias, x);
    }
  }

  // Round heads' rows [rows, all], if they are.
  void rounded_output(Worker& me, const Rounding& r, float* x, int rows) {
    if (!r.on()) return;
    int width = flat_.shape.heads * flat_.shape.head;
    if (me.index == 0) {
      Grid text = {r.step, 0};
      if (r.range == kText) text = text_grid(r, x, all_, rows, width);
      for (int i = 0; i < rows; i++) {
        float* row = x + size_t(i) * all_;
        to_values(r, r.range == kRow ? grid(r, extent(r, row, width)) : text, row, width);
      }
    }
    me.sync();
  }

  // Keys and values, and queries, unless only those of first tokens are read.
  void project(Worker& me, int number, Unit u, bool firsts) {
    const Layer& layer = flat_.layer[number];
    LayerWeights& l = layers_[number];
    int rows = u.last - u.first, count = firsts ? 2 : 3;
    size_t at = size_t(u.first) * all_;
    Output out[3] = {{&l.key, key_.floats() + at, all_},
                     {&l.value, value_.floats() + at, all_},
                     {&l.query, query_.floats() + at, all_}};
    const int inputs[3] = {kKeyIn, kValueIn, kQueryIn};
    const int outputs[3] = {kKeyOut, kValueOut, kQueryOut};
    products(me, layer, out, inputs, count, x_.floats() + size_t(u.first) * width_, rows);
    for (int i = 0; i < count; i++) {
      rounded_output(me, layer.sites[outputs[i]], out[i].to, rows);
    }
  }

  void project_firsts(Worker& me, int number, Unit u) {
    const Layer& layer = flat_.layer[number];
    float* x = first_.floats() + size_t(u.first) * width_;
    int rows = u.last - u.first;
    if (me.index == 0) {
      for (int i = 0; i < rows; i++) {
        memcpy(x + size_t(i) * width_,
               x_.floats() + size_t(batch_.text[u.first + i].first) * width_,
               4 * size_t(flat_.shape.width));
      }
    }
    me.sync();
    Output out = {&layers_[number].query, query_.floats() + size_t(u.first) * all_, all_};
    multiply(me, &out, 1, x, width_, rows, layer.sites[kQueryIn]);
    rounded_output(me, layer.sites[kQueryOut], out.to, rows);
  }

  // Products of the same rows: together where all are rounded in the same way.
  void products(Worker& me, const Layer& layer, const Output* out, const int* inputs,
                int count, const float* x, int rows) {
    bool same = true;
    for (int i = 1; i < count; i++) {
      same = same && !memcmp(&layer.sites[inputs[i]], &layer.sites[inputs[0]],
                             sizeof(Rounding)) &&
             out[i].weights->base == out[0].weights->base &&
             !out[i].weights->parts == !out[0].weights->parts;
    }
    int together = same ? count : 1;
    for (int i = 0; i < count; i += together) {
      multiply(me, out + i, together, x, width_, rows, layer.sites[inputs[i]]);
    }
  }

  void attend_all(int member, int number, bool firsts, int phase) {
    const Shape& s = flat_.shape;
    each_task(phase, batch_.text_count * s.heads, [&](int i) {
      int t = i / s.heads, h = i % s.heads;
      const Text& text = batch_.text[t];
      size_t at = size_t(text.first) * all_ + size_t(h) * s.head;
      size_t to = firsts ? size_t(t) * all_ + size_t(h) * s.head : at;
      Head head = {query_.floats() + to, key_.floats() + at, value_.floats() + at,
                   context_.floats() + to, firsts ? 1 : text.tokens, text.tokens,
                   all_, s.head, nullptr};
      if (text.masked) head.mask = mask_of(member, text);
      attend(workers_[member], head, flat_.layer[number].sites[kProbs]);
    });
  }

  const uint8_t* mask_of(int member, const Text& text) {
    uint8_t* mask = workers_[member].codes.bytes;
    const Row* row = batch_.row + text.first;
    for (int j = 0; j < text.tokens; j++) mask[j] = uint8_t(row[j].real);
    return mask;
  }

  // The rest of a layer: x = norm(x + out), x = norm(x + down(act(up(x)))).
  void transform(Worker& me, Team& team, int number, Unit u, float* to) {
    const Layer& layer = flat_.layer[number];
    LayerWeights& l = layers_[number];
    const Shape& s = flat_.shape;
    int rows = u.last - u.first;
    float* x = to + size_t(u.first) * width_;
    float *y = team.y.floats(), *middle = team.x.floats(), *inner = team.inner.floats();
    Output out = {&l.out, y, width_}, up = {&l.up, inner, inner_},
           down = {&l.down, y, width_};
    multiply(me, &out, 1, context_.floats() + size_t(u.first) * all_, all_, rows,
             layer.sites[kOutIn]);
    add_normalized(me, x, y, rows, layer.norm1_scale, layer.norm1_bias, middle);
    multiply(me, &up, 1, middle, width_, rows, layer.sites[kUpIn],
             s.relu ? kRelu : kGelu);
    multiply(me, &down, 1, inner, inner_, rows, layer.sites[kDownIn]);
    add_normalized(me, middle, y, rows, layer.norm2_scale, layer.norm2_bias, x);
  }

  void add_normalized(Worker& me, const float* a, float* b, int rows, const float* scale,
                      const float* bias, float* out) {
    int width = flat_.shape.width;
    if (me.index == 0) {
      for (int i = 0; i < rows; i++) {
        const float* from = a + size_t(i) * width_;
        float* sum = b + size_t(i) * width_;
        each(width, [&](auto v, int k) {
          typedef decltype(v) V;
          store(sum + k, load<V>(from + k) + load<V>(sum + k));
        });
        normalize(sum, width, flat_.shape.epsilon, scale, bias,
                  out + size_t(i) * width_);
      }
    }
    me.sync();
  }

  void classify(Worker& me, Team& team, Unit u) {
    const Shape& s = flat_.shape;
    int rows = u.last - u.first;
    float* x = team.x.floats();
    if (me.index == 0) {
      for (int i = 0; i < rows; i++) {
        int t = u.first + i;
        const float* from = first_only_
                                ? first_.floats() + size_t(t) * width_
                                : x_.floats() + size_t(batch_.text[t].first) * width_;
        memcpy(x + size_t(i) * width_, from, 4 * size_t(s.width));
      }
    }
    me.sync();
    Output pooled = {&pooler_, team.y.floats(), width_};
    multiply(me, &pooled, 1, x, width_, rows, flat_.pooler_in);
    if (me.index == 0) {
      for (int i = 0; i < rows; i++) {
        float* row = pooled.to + size_t(i) * width_;
        each(s.width, [&](auto v, int k) {
          typedef decltype(v) V;
          store(row + k, tangent(load<V>(row + k)));
        });
      }
    }
    me.sync();
    static const Rounding none = {};
    Output out = {&classifier_, logits_ + size_t(u.first) * s.labels, s.labels};
    multiply(me, &out, 1, pooled.to, width_, rows, none);
  }

  Flat flat_;
  Pool* pool_;
  Barrier barrier_;
  LayerWeights* layers_;
  Weights pooler_, classifier_;
  Worker* workers_;
  Team* teams_;
  Batch batch_;
  Buffer phases_, x_, query_, key_, value_, context_, first_;
  float* logits_;
  int unit_, width_, all_, inner_;
  bool by_text_, first_only_, together_;
};

}  // namespace
}  // namespace bitflax
