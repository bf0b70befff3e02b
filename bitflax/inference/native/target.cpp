// Compiled once a target, BITFLAX_TARGET its name, by flags that the target needs.

#include "speed.h"

namespace bitflax {

extern const Target BITFLAX_TARGET;

#define BITFLAX_TEXT(name) #name
#define BITFLAX_NAME(name) BITFLAX_TEXT(name)

const Target BITFLAX_TARGET = {
    BITFLAX_NAME(BITFLAX_TARGET),
    [](const Flat& flat, Pool* pool) -> void* { return Encoder::make(flat, pool); },
    [](void* self, const Inputs& inputs, float* logits) {
      return static_cast<Encoder*>(self)->run(inputs, logits);
    },
    [](const void* self) { return static_cast<const Encoder*>(self)->bytes(); },
    [](void* self) {
      static_cast<Encoder*>(self)->stop();
      free(self);
    },
    speed,
};

}  // namespace bitflax
