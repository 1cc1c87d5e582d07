#include <cstdio>

#include <onepass/rules/adam.hpp>
#include <onepass/update.hpp>

int main() {
  float param[] = {1, 1, 1, 1}, grad[] = {0.5, 0.5, 0.5, 0.5};
  float exp_avg[4] = {}, exp_avg_sq[4] = {};
  const onepass::Streams streams{
      .param = {param}, .grad = {grad}, .state = {{exp_avg}, {exp_avg_sq}}};
  for (int step = 1; step <= 3; ++step) {
    const auto rule = onepass::Adam<float>::at(step, {.lr = 0.1});
    onepass::update<onepass::FloatState>(streams, 0, 4, rule, {});
  }
  for (float p : param) std::printf("%a\n", static_cast<double>(p));
}
