#include <stdio.h>

#include "onepass/capi.h"

/* Prints the same as headers.cpp. */
int main(void) {
  float param[] = {1, 1, 1, 1}, grad[] = {0.5f, 0.5f, 0.5f, 0.5f};
  float exp_avg[4] = {0}, exp_avg_sq[4] = {0};
  double settings[ONEPASS_MOST_NUMBERS], scalars[ONEPASS_MOST_NUMBERS];
  const int32_t adam = onepass_rule("adam");
  int step, i;

  onepass_defaults(adam, settings);
  onepass_set(adam, settings, "lr", 0.1);
  for (step = 1; step <= 3; ++step) {
    onepass_scalars(adam, step, settings, NULL, scalars);
    onepass_update(adam, 0, ONEPASS_F32, 4, param, grad, exp_avg, exp_avg_sq, NULL, NULL, scalars,
                   NULL, 1);
  }
  for (i = 0; i < 4; ++i) printf("%a\n", param[i]);
  return 0;
}
