/* What chips.c and timers.c know of each other. */
#ifndef TIMERS_H
#define TIMERS_H
#include "devices.h"

void pin_route(unsigned pin, u32 low);
void pin_mask(unsigned pin);
void timers_program(void);
void timers_arm(void);
void timers_look(void);
int timers_done(void);
void timers_finish(void);
void hpet_level_taken(u32 count);
#endif
