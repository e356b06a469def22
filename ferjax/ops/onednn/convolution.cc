// Convolutions of NHWC images by HWIO kernels with oneDNN, as XLA FFI calls: value, input gradient
// and kernel gradient, in float32. The images are divided into parts, which the threads of XLA's own
// pool take one by one; oneDNN computes each part on one thread, so that no second pool competes
// with XLA's.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include <dnnl.hpp>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

enum Kind : int64_t { kValue, kInputGradient, kKernelGradient };

using Ints = ffi::Span<const int64_t>;
using Args = std::unordered_map<int, memory>;

constexpr size_t kLine = 64;  // bytes of a cache line

// Never destroyed, because XLA's threads may outlive static objects.
const dnnl::engine& Engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Memory that a thread keeps from call to call.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }
  float* AtLeast(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
      data_ = static_cast<float*>(std::aligned_alloc(kLine, rounded));
      if (!data_) throw std::bad_alloc();
      size_ = rounded;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

// A convolution of a number of images on one thread.
struct Conv {
  memory::desc x, w, y, plain_w, scratch;
  dnnl::primitive conv;
  dnnl::reorder reorder;  // of the kernel to oneDNN's order, or of its gradient from there
  bool plain;             // whether oneDNN uses the kernel in its own order
};

template <class PrimitiveDesc>
void Finish(Conv* c, const PrimitiveDesc& pd, const memory::desc& w, bool gradient) {
  c->w = w;
  c->scratch = pd.scratchpad_desc();
  c->conv = dnnl::primitive(pd);
  c->plain = c->w == c->plain_w;
  if (!c->plain) {
    const auto &from = gradient ? c->w : c->plain_w, &to = gradient ? c->plain_w : c->w;
    c->reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
}

std::shared_ptr<const Conv> Make(Kind kind, int64_t images, const Ints& x, const Ints& w,
                                 const Ints& y, const Ints& window) {
  auto c = std::make_shared<Conv>();
  const auto f32 = memory::data_type::f32;
  const auto nhwc = memory::format_tag::nhwc, any = memory::format_tag::any;
  c->x = {{images, x[3], x[1], x[2]}, f32, nhwc};
  c->y = {{images, y[3], y[1], y[2]}, f32, nhwc};
  const int64_t o = w[3], i = w[2];
  const memory::dims dims{o, i, w[0], w[1]};
  c->plain_w = {dims, f32, memory::dims{1, o, w[1] * i * o, i * o}};
  const memory::desc w_any(dims, f32, any);
  const memory::dims step{window[0], window[1]}, low{window[2], window[4]},
      high{window[3], window[5]}, dilation{window[6] - 1, window[7] - 1};
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc value(
      Engine(), dnnl::prop_kind::forward_training, direct, c->x, w_any, c->y, step, dilation, low,
      high, attr);
  if (kind == kValue) {
    Finish(c.get(), value, value.weights_desc(), false);
  } else if (kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc pd(
        Engine(), direct, c->x, w_any, c->y, step, dilation, low, high, value, attr);
    Finish(c.get(), pd, pd.weights_desc(), false);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc pd(
        Engine(), direct, c->x, w_any, c->y, step, dilation, low, high, value, attr);
    Finish(c.get(), pd, pd.diff_weights_desc(), true);
  }
  return c;
}

std::shared_ptr<const Conv> Find(Kind kind, int64_t images, const Ints& x, const Ints& w,
                                 const Ints& y, const Ints& window) {
  static auto* mutex = new std::mutex;
  static auto* known = new std::map<std::vector<int64_t>, std::shared_ptr<const Conv>>;
  std::vector<int64_t> key{kind, images};
  key.insert(key.end(), x.begin() + 1, x.end());
  key.insert(key.end(), w.begin(), w.end());
  key.insert(key.end(), y.begin() + 1, y.end());
  key.insert(key.end(), window.begin(), window.end());
  const std::lock_guard<std::mutex> lock(*mutex);
  auto& found = (*known)[key];
  if (!found) found = Make(kind, images, x, w, y, window);
  return found;
}

// oneDNN works on the calling thread alone while this lives.
struct OneThread {
  const int threads = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads); }
};

void Run(const dnnl::primitive& primitive, Args args) {
  thread_local dnnl::stream stream(Engine());
  primitive.execute(stream, args);
  stream.wait();
}

// Runs part(0), ..., part(parts - 1) on the threads of the pool and on this one, which takes all
// parts that no other thread has begun: it waits for no thread to become free.
template <class Part>
void Share(ffi::ThreadPool& pool, int64_t parts, const Part& part) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all;
    std::string error;
  };
  auto state = std::make_shared<State>();
  const Part* work = &part;  // used only before the last part is done
  auto take = [state, parts, work] {
    for (int64_t i; (i = state->next++) < parts;) {
      std::string error;
      try {
        const OneThread one;
        (*work)(i);
      } catch (const std::exception& e) {
        error = e.what();
      }
      const std::lock_guard<std::mutex> lock(state->mutex);
      if (!error.empty()) state->error = error;
      if (++state->done == parts) state->all.notify_all();
    }
  };
  const int64_t helpers = std::min<int64_t>(parts, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(take)(take));
  take();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all.wait(lock, [&] { return state->done == parts; });
  if (!state->error.empty()) throw std::runtime_error(state->error);
}

// The first of `number` things that belong to part i of so many.
int64_t Start(int64_t number, int64_t parts, int64_t i) { return number * i / parts; }

ffi::Error Check(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, const ffi::AnyBuffer& c,
                 const Ints& window, int64_t parts) {
  if (a.dimensions().size() != 4 || b.dimensions().size() != 4 || c.dimensions().size() != 4 ||
      window.size() != 8 || parts < 0)
    return ffi::Error::InvalidArgument("expected arrays of four dimensions and a window of eight");
  if (a.element_type() != ffi::F32 || b.element_type() != ffi::F32 || c.element_type() != ffi::F32)
    return ffi::Error::InvalidArgument("expected arrays of float32");
  return ffi::Error::Success();
}

struct Shapes {
  Kind kind;
  Ints x, w, y, window;
  int64_t parts;

  std::vector<std::shared_ptr<const Conv>> Convs() const {
    const OneThread one;
    std::vector<std::shared_ptr<const Conv>> convs;
    for (int64_t i = 0; i < parts; ++i)
      convs.push_back(Find(kind, First(i + 1) - First(i), x, w, y, window));
    return convs;
  }
  int64_t First(int64_t i) const { return Start(x[0], parts, i); }
  float* X(float* x0, int64_t i) const { return x0 + First(i) * x[1] * x[2] * x[3]; }
  float* Y(float* y0, int64_t i) const { return y0 + First(i) * y[1] * y[2] * y[3]; }
};

// The value and the input gradient: every part writes its own images.
void Images(const Shapes& s, ffi::ThreadPool& pool, float* x, float* w, float* y) {
  thread_local Buffer ordered;
  const auto& e = Engine();
  const auto convs = s.Convs();
  const Conv& first = *convs[0];
  if (!first.plain) {
    float* to = ordered.AtLeast(first.w.get_size());
    const OneThread one;
    Run(first.reorder, {{DNNL_ARG_FROM, memory(first.plain_w, e, w)},
                        {DNNL_ARG_TO, memory(first.w, e, to)}});
    w = to;
  }
  const bool value = s.kind == kValue;
  Share(pool, s.parts, [&](int64_t i) {
    thread_local Buffer scratch;
    const Conv& c = *convs[i];
    Run(c.conv, {{value ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC, memory(c.x, e, s.X(x, i))},
                 {DNNL_ARG_WEIGHTS, memory(c.w, e, w)},
                 {value ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, memory(c.y, e, s.Y(y, i))},
                 {DNNL_ARG_SCRATCHPAD, memory(c.scratch, e, scratch.AtLeast(c.scratch.get_size()))}});
  });
}

// The kernel gradient: the sum of the parts' gradients, in their order.
void Kernel(const Shapes& s, ffi::ThreadPool& pool, float* x, float* w, float* y) {
  thread_local Buffer sums;
  const auto& e = Engine();
  const auto convs = s.Convs();
  const Conv& first = *convs[0];
  const size_t numbers = first.w.get_size() / sizeof(float);
  const size_t step = (first.w.get_size() + kLine - 1) / kLine * kLine / sizeof(float);
  float* all = sums.AtLeast(step * sizeof(float) * s.parts);
  Share(pool, s.parts, [&](int64_t i) {
    thread_local Buffer scratch;
    const Conv& c = *convs[i];
    Run(c.conv, {{DNNL_ARG_SRC, memory(c.x, e, s.X(x, i))},
                 {DNNL_ARG_DIFF_DST, memory(c.y, e, s.Y(y, i))},
                 {DNNL_ARG_DIFF_WEIGHTS, memory(c.w, e, all + i * step)},
                 {DNNL_ARG_SCRATCHPAD, memory(c.scratch, e, scratch.AtLeast(c.scratch.get_size()))}});
  });
  float* total = first.plain ? w : all;
  const int64_t slices = std::min<int64_t>(pool.num_threads(), 1 + numbers / 16384);
  Share(pool, slices, [&](int64_t slice) {
    const int64_t begin = Start(numbers, slices, slice), end = Start(numbers, slices, slice + 1);
    if (total != all) std::copy(all + begin, all + end, total + begin);
    for (int64_t i = 1; i < s.parts; ++i) {
      const float* part = all + i * step;
      for (int64_t n = begin; n < end; ++n) total[n] += part[n];
    }
  });
  if (!first.plain) {
    const OneThread one;
    Run(first.reorder, {{DNNL_ARG_FROM, memory(first.w, e, all)},
                        {DNNL_ARG_TO, memory(first.plain_w, e, w)}});
  }
}

// value: x, w -> y; input gradient: dy, w -> dx; kernel gradient: x, dy -> dw. The images are in
// `parts` parts, or in one for each thread if that is 0.
template <Kind kind>
ffi::Error Call(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                ffi::Result<ffi::AnyBuffer> out, Ints window, int64_t parts) {
  if (auto error = Check(a, b, *out, window, parts); error.failure()) return error;
  ffi::AnyBuffer &x = kind == kInputGradient ? *out : a, &w = kind == kKernelGradient ? *out : b,
                 &y = kind == kValue ? *out : kind == kInputGradient ? a : b;
  if (!parts) parts = std::min<int64_t>(x.dimensions()[0], pool.num_threads());
  Shapes shapes{kind, x.dimensions(), w.dimensions(), y.dimensions(), window, parts};
  const auto data = [](ffi::AnyBuffer& buffer) { return static_cast<float*>(buffer.untyped_data()); };
  try {
    (kind == kKernelGradient ? Kernel : Images)(shapes, pool, data(x), data(w), data(y));
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

#define BINDING(name, kind)                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Call<kind>,            \
                                ffi::Ffi::Bind()             \
                                    .Ctx<ffi::ThreadPool>()  \
                                    .Arg<ffi::AnyBuffer>()   \
                                    .Arg<ffi::AnyBuffer>()   \
                                    .Ret<ffi::AnyBuffer>()   \
                                    .Attr<Ints>("window")    \
                                    .Attr<int64_t>("parts"))

BINDING(FerjaxValue, kValue);
BINDING(FerjaxInputGradient, kInputGradient);
BINDING(FerjaxKernelGradient, kKernelGradient);
